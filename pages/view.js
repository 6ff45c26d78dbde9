// What one looks at, kept in the URL: a reload and whoever gets the URL see the same.

export const view = { period: '', from: '', to: '', find: '', theme: '', tile: '', values: {}, as: {} }

const TEXTS = ['period', 'from', 'to', 'find', 'theme', 'tile']
const listeners = []

// values are parameters by name, or by metric.name where only one tile has them; as is how a tile is shown, by metric.
const DICTIONARIES = { p: 'values', as: 'as' }

export function readUrl() {
	const given = new URLSearchParams(location.search)
	for (const name of TEXTS) view[name] = given.get(name) || ''
	for (const [prefix, name] of Object.entries(DICTIONARIES)) {
		view[name] = { __proto__: null }
		for (const [key, value] of given) if (key.startsWith(`${prefix}.`)) view[name][key.slice(prefix.length + 1)] = value
	}
}

function url() {
	const given = new URLSearchParams(TEXTS.filter((name) => view[name]).map((name) => [name, view[name]]))
	for (const [prefix, name] of Object.entries(DICTIONARIES)) {
		for (const [key, value] of Object.entries(view[name])) if (value) given.set(`${prefix}.${key}`, value)
	}
	return given.size ? `?${given}` : location.pathname
}

// A tile that opens is a step that the browser's way back undoes; nothing else is.
export function look(change) {
	const opened = 'tile' in change && change.tile && change.tile !== view.tile
	Object.assign(view, change)
	history[opened ? 'pushState' : 'replaceState'](null, '', url())
	for (const listener of listeners) listener(change)
}

// Told what has changed, of which nothing is known when the browser went back.
export const whenLooking = (listener) => listeners.push(listener)

window.addEventListener('popstate', () => {
	readUrl()
	for (const listener of listeners) listener({})
})

readUrl()
