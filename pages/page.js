// The dashboard: its header, its menus, and the list of metrics that decides which tiles there are.

import { api, download, explain, hasToken, inFull, pathOf } from './api.js'
import { begin, cancel, done, isArranging, layOut, undo } from './arrange.js'
import { write } from './charts.js'
import { $, notice } from './dom.js'
import { learnLabels } from './fields.js'
import { ask, connect, poll, queryOf, reconnect, refresh, setState, unsubscribe } from './live.js'
import { close, keep, makeTile, preview, showDefinition } from './maker.js'
import { mayWrite, whenSignedIn } from './signin.js'
import { add, all, part, redraw, remove, shareParameters, showFields, summaryOf, tileOf, tiles, titleOf } from './tiles.js'
import { look, readUrl, view, whenLooking } from './view.js'

const EVERY = { list: 15, poll: 30 } // seconds

// --- What one looks at

function flipTheme() {
	const dark = matchMedia('(prefers-color-scheme: dark)').matches
	const now = view.theme || (dark ? 'dark' : 'light')
	look({ theme: now === 'dark' ? 'light' : 'dark' })
}

function showHeader() {
	document.documentElement.dataset.theme = view.theme || ''
	for (const id of ['period', 'from', 'to', 'find']) if ($(id) !== document.activeElement) $(id).value = view[id] || ''
	$('custom').hidden = view.period !== 'custom'
	$('to').min = view.from || ''
}

function choosePeriod() {
	const [period, from, to] = ['period', 'from', 'to'].map((id) => $(id).value)
	if ($('custom').hidden || $('to').reportValidity()) look({ period, from, to })
}

function findTiles() {
	const wanted = (view.find || '').toLowerCase().split(/\s+/)
	for (const tile of all()) {
		const text = summaryOf(tile).toLowerCase()
		tile.cell.hidden = tile.id !== view.tile && !wanted.every((word) => text.includes(word))
	}
	$('none').hidden = !shownList || all().some(({ cell }) => !cell.hidden)
	const nothing = 'No metrics yet. Make a tile, or put an SQL file into the queries directory.'
	write($('none'), all().length ? `No tile’s title or description has “${view.find}”.` : nothing)
}

function showAll() {
	showHeader()
	shareParameters()
	for (const tile of all()) {
		showFields(tile)
		redraw(tile)
	}
	showFound()
	showOpened()
	ask()
}

function showFound() {
	findTiles()
	layOut()
}

whenLooking((change) => {
	const [name, more] = Object.keys(change)
	if (more || !['tile', 'find'].includes(name)) showAll()
	else if (name === 'find') showFound()
	else showOpened()
})

// --- A tile as large as the window

let opened = null

function showOpened() {
	const tile = tiles.get(view.tile) || null
	for (const other of all()) {
		other.cell.classList.toggle('open', other === tile)
		other.cell.inert = !!tile && other !== tile
	}
	for (const node of document.querySelectorAll('body > header, body > .bar')) node.inert = !!tile
	document.body.classList.toggle('opened', !!tile)
	if (tile === opened) return
	const focused = tile || opened
	opened = tile
	if (tiles.has(focused.id)) part(focused, tile ? '.close' : '.menu summary').focus()
}

// --- The list of metrics

let shownList = ''

// Ids of what does not compile, which the list has not; and whether a model reads prompts.
async function readHealth() {
	const answer = await fetch('health/ready', { cache: 'no-store' }).catch(() => null)
	const { checks = {} } = (await answer?.json().catch(() => null)) || {}
	$('mock').hidden = checks['model:kind']?.[0].observedValue !== 'built-in mock'
	return (checks['metrics:files'] || []).map(({ componentId }) => componentId).filter(Boolean)
}

// What does not compile, as it was when it was last seen.
async function readBroken(listed) {
	const names = new Set([...await readHealth(), ...tiles.keys()])
	for (const { id } of listed) names.delete(id)
	const reading = [...names].map((id) => api('GET', `${pathOf(id)}/definition`).catch(() => ({})))
	const definitions = (await Promise.all(reading)).map(({ data }) => data).filter((data) => data?.fault)
	return definitions.map((data) => ({ unit: '', chart: 'bar', layouts: [], ...tiles.get(data.id)?.metric, ...data }))
}

function drop(tile) {
	unsubscribe(tile)
	remove(tile)
}

function showList(metrics) {
	const ids = new Set(metrics.map(({ id }) => id))
	for (const tile of all()) if (!ids.has(tile.id)) drop(tile)
	for (const metric of metrics) {
		const tile = tiles.get(metric.id) || add(metric)
		const isOther = !tile.metric.fault !== !metric.fault // broken or mended: asked anew
		redraw(tile, { metric, ...(isOther && { key: null }) })
	}
	connect()
	showAll()
}

async function readList() {
	const { data } = await api('GET', 'metrics')
	const text = JSON.stringify(data)
	write($('banner'))
	if (text === shownList || isArranging()) return
	shownList = text
	if (!tiles.size) showList(data.metrics) // whatever else has to be asked for
	const [broken] = await Promise.all([readBroken(data.metrics), learnLabels(data.metrics).catch(() => null)])
	showList([...data.metrics, ...broken])
}

async function list(always) {
	if (document.hidden && !always) return
	try {
		await readList()
	} catch (problem) {
		if (!shownList) setState('off')
		write($('banner'), problem.status !== 401 && explain(problem))
	}
}

whenSignedIn(() => {
	reconnect()
	list(true)
})

// --- What a tile's menu does

async function change(...request) {
	const answer = await api(...request).catch((problem) => notice('Not changed', inFull(problem)))
	list(true)
	return !!answer
}

function rename(tile) {
	const title = prompt('New title', titleOf(tile))
	if (title) change('PATCH', pathOf(tile.id), { title, version: tile.metric.version })
}

async function deleteMetric(tile) {
	if (!confirm(`Delete “${titleOf(tile)}”?\n\nThe metric and its query go, for everybody. This cannot be undone.`)) return
	if (await change('DELETE', `${pathOf(tile.id)}?version=${tile.metric.version}`)) drop(tile)
}

async function saveCsv(tile) {
	try {
		const { blob, truncated } = await download(`${pathOf(tile.id)}.csv?${queryOf(tile)}`)
		const href = URL.createObjectURL(blob)
		Object.assign(document.createElement('a'), { href, download: `${tile.id}.csv` }).click()
		setTimeout(URL.revokeObjectURL, 1000, href)
		if (truncated) notice('The file holds the first rows only', 'Choose a shorter period for all of them')
	} catch (problem) {
		notice('Not downloaded', explain(problem))
	}
}

const shellQuoted = (text) => `'${text.replaceAll("'", "'\\''")}'`

async function copyCurl(tile) {
	const url = new URL(`${pathOf(tile.id)}?${queryOf(tile)}`, location.origin + location.pathname)
	const text = `curl ${shellQuoted(url.href)}${hasToken() ? ' -H "Authorization: Bearer $TOKEN"' : ''}`
	try {
		await navigator.clipboard.writeText(text)
		notice('Copied', text)
	} catch {
		prompt('Copy this', text) // without https there is no clipboard
	}
}

const actions = {
	theme: flipTheme,
	make: makeTile,
	close,
	arrange: begin,
	undo,
	done,
	cancel,
	open: (tile) => look({ tile: tile.id }),
	shut: () => look({ tile: '' }),
	retry(tile) {
		redraw(tile, { problem: null, busy: true })
		refresh(tile)
	},
	csv: saveCsv,
	curl: copyCurl,
	definition: (tile) => showDefinition(tile, mayWrite()).catch((problem) => notice(explain(problem))),
	as: (tile, button) => look({ [`as.${tile.id}`]: button.dataset.as }),
	rename,
	delete: deleteMetric,
}

function clicked({ target }) {
	const button = target.closest('[data-do]')
	for (const menu of document.querySelectorAll('.menu[open]')) if (button || !menu.contains(target)) menu.open = false
	if (button) actions[button.dataset.do](tileOf(button), button)
}

// Escape closes a menu, or else the full screen.
function escaped({ key, defaultPrevented }) {
	if (key !== 'Escape' || defaultPrevented || document.querySelector('dialog[open]')) return
	const menu = document.querySelector('.menu[open]')
	if (menu) {
		menu.open = false
		menu.querySelector('summary').focus()
	} else if (view.tile) look({ tile: '' })
}

async function keepTile() {
	const id = await keep()
	if (!id) return
	await list(true)
	const tile = tiles.get(id)
	if (!tile) return
	tile.cell.scrollIntoView({ block: 'nearest' })
	part(tile, 'section').focus()
}

function onSubmit(id, act) {
	$(id).addEventListener('submit', (event) => {
		event.preventDefault()
		act()
	})
}

function refreshAll() {
	list()
	poll()
}

onSubmit('make', preview)
onSubmit('keeping', keepTile)
document.addEventListener('click', clicked)
document.addEventListener('keydown', escaped)
document.addEventListener('visibilitychange', refreshAll)
window.addEventListener('online', refreshAll)
for (const id of ['period', 'custom']) $(id).addEventListener('change', choosePeriod)
$('find').addEventListener('input', () => look({ find: $('find').value.trim() }))
readUrl() // that one came back from signing in to
showHeader()
list(true)
setInterval(list, EVERY.list * 1000)
setInterval(poll, EVERY.poll * 1000)
setTimeout(poll, 2000)
