// The page's own elements, and what it says in passing.

import { sentences, write } from './charts.js'

export const $ = (id) => document.getElementById(id)

export function notice(...parts) {
	write($('notice'), sentences(parts))
	clearTimeout(notice.timer)
	notice.timer = setTimeout(write, 7000, $('notice'))
}
