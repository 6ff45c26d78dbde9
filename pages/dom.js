// The page's own elements, and what it says in passing.

import { sentences, write } from './charts.js'

export const $ = (id) => document.getElementById(id)

// To a screen reader only.
export const say = (text) => write($('spoken'), text)

export function notice(...parts) {
	write($('notice'), sentences(parts))
	clearTimeout(notice.timer)
	notice.timer = setTimeout(write, 7000, $('notice'))
}
