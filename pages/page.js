// The dashboard: its header, its menus, and the list of metrics that decides which tiles there are.

import { api, download, explain, hasToken, inFull, pathOf } from './api.js'
import { begin, cancel, done, isArranging, layOut, undo } from './arrange.js'
import { unpoint, write } from './charts.js'
import { $, notice, say } from './dom.js'
import { learnEnums } from './fields.js'
import { ask, connect, poll, queryOf, reconnect, refresh, shown, unsubscribe, whenClosed, whenLost } from './live.js'
import { close, editSql, keep, makeTile, preview, showDefinition, whenKept } from './maker.js'
import { askAgain, isAsking, mayWrite, whenSignedIn } from './signin.js'
import {
	add, all, fieldsInto, part, redraw, remove, shareParameters, showFields, summaryOf, tileOf, tiles, titleOf,
} from './tiles.js'
import { look, readUrl, view, whenLooking } from './view.js'

const EVERY = { list: 15, poll: 30 } // seconds
const MANY = 8 // tiles, from which on one wants to find them

// --- What one looks at

function showTheme() {
	document.documentElement.dataset.theme = view.theme
}

function flipTheme() {
	const dark = matchMedia('(prefers-color-scheme: dark)').matches
	const now = view.theme || (dark ? 'dark' : 'light')
	look({ theme: now === 'dark' ? 'light' : 'dark' })
}

function showPeriod() {
	for (const id of ['period', 'from', 'to', 'find']) if ($(id) !== document.activeElement) $(id).value = view[id]
	$('custom').hidden = view.period !== 'custom'
	$('to').min = $('custom').hidden ? '' : view.from
}

function choosePeriod() {
	const [period, from, to] = ['period', 'from', 'to'].map((id) => $(id).value)
	if ($('to').reportValidity()) look({ period, from, to })
}

function findTiles() {
	const wanted = view.find.toLowerCase().split(/\s+/).filter(Boolean)
	let found = 0
	for (const tile of all()) {
		const text = summaryOf(tile).toLowerCase()
		tile.cell.hidden = tile.id !== view.tile && !wanted.every((word) => text.includes(word))
		found += !tile.cell.hidden
	}
	$('finding').hidden = all().length <= MANY && !view.find
	$('none').hidden = found > 0 || !known.begun
	const nothing = 'No metrics yet. Make a tile, or put an SQL file into the queries directory.'
	write($('none'), all().length ? `No tile’s title or description has “${view.find}”.` : nothing)
}

function showAll(fresh) {
	showTheme()
	showPeriod()
	const common = shareParameters()
	fieldsInto($('shared'), common.map(({ id, parameter }) => [id, parameter.name, parameter]), fresh)
	for (const tile of all()) {
		showFields(tile, fresh)
		redraw(tile)
	}
	findTiles()
	layOut()
	showOpened()
	ask()
}

whenLooking((change) => {
	const [name, more] = Object.keys(change)
	if (name === 'tile' && !more) return showOpened()
	if (name !== 'find') return showAll()
	findTiles()
	layOut()
})

// --- A tile as large as the window

let opened = null

function showOpened() {
	const tile = tiles.get(view.tile) || null
	for (const other of all()) {
		other.cell.classList.toggle('open', other === tile)
		other.cell.inert = !!tile && other !== tile
	}
	for (const node of document.querySelectorAll('body > header, #banner, #auth')) node.inert = !!tile
	document.body.classList.toggle('opened', !!tile)
	if (tile === opened) return
	const focused = tile || opened
	opened = tile
	if (tiles.has(focused.id)) part(focused, tile ? '.close' : '.menu summary').focus()
}

// --- The list of metrics

const known = { begun: false, text: '' }

// What is named here is no longer in the list because it does not compile, or because it is gone.
async function faultOf(id) {
	const { data } = await api('GET', `${pathOf(id)}/definition`).catch(() => ({}))
	return data?.fault ? data : null
}

// Ids of what does not compile; the list has none of them.
async function readHealth() {
	const answer = await fetch('health/ready', { cache: 'no-store' }).catch(() => null)
	const { checks = {} } = (await answer?.json().catch(() => null)) || {}
	$('mock').hidden = checks['model:kind']?.[0].observedValue !== 'built-in mock'
	return (checks['metrics:files'] || []).map(({ componentId }) => componentId).filter(Boolean)
}

async function broken(listed) {
	const names = new Set([...await readHealth(), ...tiles.keys()])
	for (const { id } of listed) names.delete(id)
	const faults = await Promise.all([...names].map(faultOf))
	return faults.filter(Boolean)
}

// As it was when it was last seen.
const asMetric = (definition) =>
	({ unit: '', chart: 'bar', layouts: [], ...tiles.get(definition.id)?.metric, ...definition })

function drop(tile) {
	unsubscribe(tile)
	remove(tile)
}

function merge(metrics, faults) {
	const listed = new Map([...metrics, ...faults.map(asMetric)].map((metric) => [metric.id, metric]))
	for (const tile of all()) if (!listed.has(tile.id)) drop(tile)
	for (const metric of listed.values()) {
		const tile = tiles.get(metric.id) || add(metric)
		const fault = faults.find(({ id }) => id === metric.id) || null
		const mended = tile.fault && !fault
		redraw(tile, { metric, fault, ...(mended && { key: null, problem: null, busy: true }) })
		if (fault) unsubscribe(tile)
	}
}

function showList(metrics, faults) {
	merge(metrics, faults)
	known.begun = true
	connect()
	showAll()
}

async function readList() {
	const { data } = await api('GET', 'metrics')
	const text = JSON.stringify(data)
	write($('banner'))
	if (text === known.text || isArranging()) return
	const first = !tiles.size
	known.text = text
	if (first) showList(data.metrics, []) // whatever else has to be asked for
	const faults = await broken(data.metrics)
	if (!first || faults.length) showList(data.metrics, faults)
	if (await learnEnums(data.metrics).catch(() => false)) showAll(true)
}

async function list(always) {
	if (document.hidden && !always) return
	try {
		await readList()
	} catch (problem) {
		if (!known.begun) shown.state = 'off'
		write($('banner'), problem.status !== 401 && explain(problem))
	}
}

// --- Signing in

whenClosed(askAgain)
whenLost(() => list())
whenSignedIn(() => {
	reconnect()
	known.text = ''
	list(true)
})

// --- What a tile's menu does

async function confirmed(box, tile) {
	write(box.querySelector('b'), titleOf(tile))
	box.returnValue = ''
	box.showModal()
	return new Promise((resolve) => { box.onclose = () => resolve(box.returnValue) })
}

async function change(...request) {
	const answer = await api(...request).catch((problem) => notice('Not changed', inFull(problem)))
	list(true)
	return !!answer
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

function curlOf(tile) {
	const query = queryOf(tile)
	const url = new URL(pathOf(tile.id) + (query && `?${query}`), location.origin + location.pathname)
	return `curl ${shellQuoted(url.href)}${hasToken() ? ' -H "Authorization: Bearer $TOKEN"' : ''}`
}

// Without https there is no clipboard, and the text is shown instead.
async function copy(text) {
	try {
		await navigator.clipboard.writeText(text)
		notice('Copied', text)
	} catch {
		$('copied').value = text
		$('copying').showModal()
		$('copied').select()
	}
}

const actions = {
	theme: flipTheme,
	make: makeTile,
	close,
	editSql,
	arrange: begin,
	undo,
	done,
	cancel,
	open: (tile) => look({ tile: tile.id }),
	shut: () => look({ tile: '' }),
	retry: (tile) => { redraw(tile, { problem: null, busy: true }); refresh(tile) },
	csv: saveCsv,
	curl: (tile) => copy(curlOf(tile)),
	definition: (tile) => showDefinition(tile, mayWrite()).catch((problem) => notice(explain(problem))),
	as(tile, { dataset: { as } }) {
		unpoint()
		look({ as: { ...view.as, [tile.id]: as } })
	},
	async rename(tile) {
		$('name').value = titleOf(tile)
		if (!await confirmed($('renaming'), tile)) return
		change('PATCH', pathOf(tile.id), { title: $('name').value, version: tile.metric.version })
	},
	async delete(tile) {
		if (!await confirmed($('deleting'), tile)) return
		if (await change('DELETE', `${pathOf(tile.id)}?version=${tile.metric.version}`)) drop(tile)
	},
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
	unpoint()
	if (menu) {
		menu.open = false
		menu.querySelector('summary').focus()
	} else if (view.tile) look({ tile: '' })
}

function moveInMenu(event) {
	const step = { ArrowDown: 1, ArrowUp: -1 }[event.key]
	const menu = step && event.target.closest('.menu')
	if (!menu) return
	event.preventDefault()
	menu.open = true
	const items = [...menu.querySelectorAll('.items button')].filter((item) => item.checkVisibility())
	const at = items.indexOf(document.activeElement)
	items[(at + step + items.length) % items.length].focus()
}

function seen() {
	list()
	poll()
	if (known.begun && !isAsking()) connect()
}

async function showKept(id) {
	await list(true)
	const tile = tiles.get(id)
	if (!tile) return
	tile.cell.scrollIntoView({ block: 'nearest' })
	part(tile, 'section').focus()
	say(`${titleOf(tile)} is on the dashboard`)
}

whenKept(showKept)

const forms = { make: preview, keeping: keep }
document.addEventListener('submit', (event) => {
	const submit = forms[event.target.id]
	if (!submit) return
	event.preventDefault()
	submit()
})
document.addEventListener('click', clicked)
document.addEventListener('keydown', escaped)
document.addEventListener('keydown', moveInMenu)
document.addEventListener('visibilitychange', seen)
window.addEventListener('online', seen)
for (const id of ['period', 'custom']) $(id).addEventListener('change', choosePeriod)
$('find').addEventListener('input', () => look({ find: $('find').value.trim() }))
readUrl() // that one came back from signing in to
showTheme()
showPeriod()
list(true)
setInterval(list, EVERY.list * 1000)
setInterval(poll, EVERY.poll * 1000)
setTimeout(poll, 2000)
