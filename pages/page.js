// The dashboard: its header, its menus, and the list of metrics that decides which tiles there are.

import { api, download, explain, inFull, pathOf, token } from './api.js'
import { begin, cancel, done, isArranging, layOut, undo } from './arrange.js'
import { sentences, write } from './charts.js'
import { $, notice } from './dom.js'
import { learnLabels } from './fields.js'
import { ask, connect, poll, reconnect, refresh, unsubscribe } from './live.js'
import { keep, makeTile, preview, showDefinition } from './maker.js'
import { mayWrite, whenSignedIn } from './signin.js'
import { add, all, part, remove, shareParameters, showFields, tileOf, tiles, titleOf, update } from './tiles.js'
import { look, readUrl, view, whenLooking } from './view.js'

const EVERY = 30_000 // milliseconds
const CHOICES = ['period', 'from', 'to', 'find']

// --- What one looks at

function flipTheme() {
	const dark = matchMedia('(prefers-color-scheme: dark)').matches
	const now = view.theme || (dark ? 'dark' : 'light')
	look({ theme: now === 'dark' ? 'light' : 'dark' })
}

function showHeader() {
	document.documentElement.dataset.theme = view.theme || ''
	for (const id of CHOICES) if ($(id) !== document.activeElement) $(id).value = view[id] || ''
	$('custom').hidden = view.period !== 'custom'
}

function findTiles() {
	const wanted = (view.find || '').toLowerCase().split(/\s+/)
	for (const tile of all()) {
		const text = sentences([titleOf(tile), tile.metric.description]).toLowerCase()
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
		update(tile)
	}
	findTiles()
	layOut()
	showOpened()
	ask()
}

whenLooking(showAll)

// --- A tile as large as the window

let opened

function showOpened() {
	const tile = tiles.get(view.tile)
	for (const other of all()) other.cell.classList.toggle('open', other === tile)
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

function showList(metrics) {
	const ids = new Set(metrics.map(({ id }) => id))
	for (const tile of all().filter(({ id }) => !ids.has(id))) {
		unsubscribe(tile)
		remove(tile)
	}
	for (const metric of metrics) {
		const tile = tiles.get(metric.id) || add(metric)
		const isOther = !tile.metric.fault !== !metric.fault // broken or mended: asked anew
		update(tile, { metric, ...(isOther && { key: null }) })
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

async function list() {
	try {
		await readList()
	} catch (problem) {
		if (!shownList) $('state').dataset.state = 'off'
		write($('banner'), problem.status !== 401 && explain(problem))
	}
}

whenSignedIn(() => {
	reconnect()
	list()
})

// --- What a tile's menu does

async function change(...request) {
	await api(...request).catch((problem) => notice('Not changed', inFull(problem)))
	list()
}

function rename(tile) {
	const title = prompt('New title', titleOf(tile))
	if (title) change('PATCH', pathOf(tile.id), { title, version: tile.metric.version })
}

function deleteMetric(tile) {
	const sure = confirm(`Delete “${titleOf(tile)}”? The metric and its query go, for everybody. This cannot be undone.`)
	if (sure) change('DELETE', `${pathOf(tile.id)}?version=${tile.metric.version}`)
}

async function saveCsv(tile) {
	try {
		const { blob, truncated } = await download(`${pathOf(tile.id)}.csv?${new URLSearchParams(tile.params)}`)
		const href = URL.createObjectURL(blob)
		Object.assign(document.createElement('a'), { href, download: `${tile.id}.csv` }).click()
		setTimeout(URL.revokeObjectURL, 1000, href)
		if (truncated) notice('The file holds the first rows only', 'Choose a shorter period for all of them')
	} catch (problem) {
		notice('Not downloaded', explain(problem))
	}
}

async function copyCurl(tile) {
	const url = new URL(`${pathOf(tile.id)}?${new URLSearchParams(tile.params)}`, location.origin + location.pathname)
	const text = `curl '${url.href.replaceAll("'", '%27')}'${token ? ' -H "Authorization: Bearer $TOKEN"' : ''}`
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
	close: () => $('maker').close(),
	arrange: begin,
	undo,
	done,
	cancel,
	open: (tile) => look({ tile: tile.id }),
	shut: () => look({ tile: '' }),
	retry(tile) {
		update(tile, { problem: null, busy: true })
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
function escaped({ key }) {
	if (key !== 'Escape' || document.querySelector('dialog[open]')) return
	const menu = document.querySelector('.menu[open]')
	if (menu) {
		menu.open = false
		menu.querySelector('summary').focus()
	} else if (view.tile) look({ tile: '' })
}

async function keepTile(event) {
	event.preventDefault()
	const id = await keep()
	if (!id) return
	await list()
	if (tiles.has(id)) part(tiles.get(id), 'section').focus()
}

function refreshAll() {
	if (document.hidden) return
	list()
	poll()
}

$('make').onsubmit = preview
$('keeping').onsubmit = keepTile
document.addEventListener('click', clicked)
document.addEventListener('keydown', escaped)
document.addEventListener('visibilitychange', refreshAll)
window.addEventListener('online', refreshAll)
for (const id of CHOICES) $(id).oninput = () => look({ [id]: $(id).value })
readUrl() // that one came back from signing in to
showHeader()
list()
setInterval(refreshAll, EVERY)
setTimeout(poll, 2000) // a socket may be kept waiting
