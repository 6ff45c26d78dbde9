// What one looks at, kept in the URL: a reload and whoever gets the URL see the same.

// Texts by name: period, from, to, find, theme, tile (the opened one), as.METRIC (how a tile is shown), and parameters:
// p.NAME, or p.METRIC.NAME where only one tile has it.
export const view = {}

let listener

export const whenLooking = (called) => { listener = called }

export function readUrl() {
	for (const name in view) delete view[name]
	Object.assign(view, Object.fromEntries(new URLSearchParams(location.search)))
}

// A tile that opens is a step that the browser's way back undoes; nothing else is.
export function look(change) {
	const opened = change.tile && change.tile !== view.tile
	Object.assign(view, change)
	const given = new URLSearchParams(Object.entries(view).filter(([, value]) => value))
	history[opened ? 'pushState' : 'replaceState'](null, '', given.size ? `?${given}` : location.pathname)
	listener()
}

window.addEventListener('popstate', () => {
	readUrl()
	listener()
})

readUrl()
