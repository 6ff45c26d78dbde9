// The dashboard: its tiles, their places, and what keeps them fresh.

import { api, authorization, hasToken } from './api.js'
import { draw, parse, sentences, unpoint, words, write } from './charts.js'
import { askAgain, isAsking, mayWrite, whenSignedIn } from './signin.js'

const { abs, floor, max, min, round } = Math
const { assign } = Object
const DAY = 864e5
const $ = (id) => document.getElementById(id)
const say = (text) => write($('spoken'), text)

function notice(...parts) {
	write($('notice'), sentences(parts))
	clearTimeout(notice.timer)
	notice.timer = setTimeout(write, 7000, $('notice'))
}

// --- Tiles

const tiles = new Map()
const all = () => [...tiles.values()]
const tileOf = (node) => tiles.get(node?.closest('.cell')?.dataset.id)
const titleOf = ({ metric }) => metric.title || words(metric.id)
const part = (tile, name) => tile.cell.querySelector(name)
const dirty = new Set()

function redraw(tile, change) {
	if (!dirty.size) requestAnimationFrame(() => { for (const each of dirty) show(each, dirty.delete(each)) })
	dirty.add(assign(tile, change))
}

const explain = ({ title, detail, errors = [] }) => sentences([title, detail, ...errors.map((error) => error.detail)])

function label(tile) {
	const { cell, metric, params, problem, result } = tile
	const state = problem ? (result ? 'stale' : 'error') : !result ? 'loading' : result.records.length ? 'ready' : 'empty'
	const texts = { h2: titleOf(tile), '.about': metric.description, '.why': problem && explain(problem),
		'.age': result && `As of ${new Date(tile.at).toLocaleTimeString()}.` }
	for (const name in texts) write(part(tile, name), texts[name])
	const { chart, is_editable: editable } = metric
	assign(cell.dataset, { state, chart, editable, view: tile.asTable ? 'table' : chart, status: problem ? problem.status || 0 : '' })
	assign(part(tile, 'section'), { ariaLabel: titleOf(tile), ariaBusy: !!tile.busy })
	part(tile, '.own').hidden = !Object.keys(params)[0] || metric.parameters.some(({ name }) => name in params)
}

function show(tile) {
	const { metric, result, asTable } = tile
	label(tile)
	if (result) draw(part(tile, '.view'), { ...metric, title: titleOf(tile) }, result, { asTable, say })
}

// --- Requests

const fail = (what) => (problem) => notice(what, explain(problem))
const pathOf = (id) => `metrics/${encodeURIComponent(id)}`

// No data is a 304: what there is, is new.
function accept(tile, { etag, data, problem }) {
	redraw(tile, { busy: false, problem }, problem || assign(tile, { etag, at: Date.now(), result: data || tile.result }))
}

async function load(tile) {
	const { id, key, params, etag } = tile
	const answer = await api('GET', `${pathOf(id)}?${new URLSearchParams(params)}`, null, etag).catch((problem) => ({ problem }))
	if (tile.key === key) accept(tile, answer)
}

// --- The period

// Where the end is a time and not a date, the last day counts whole.
function paramsOf({ parameters }) {
	const [choice, from, to] = ['period', 'from', 'to'].map((id) => $(id).value)
	const day = (ago) => new Date(Date.now() - ago * DAY).toISOString().slice(0, 10)
	const params = choice === 'custom' ? { ...(from && { start_date: from, end_date: day(0) }), ...(to && { end_date: to }) }
		: choice ? { start_date: day(choice), end_date: day(0), day_range: choice } : {}
	const type = parameters.find(({ name }) => name === 'end_date')?.type
	if (params.end_date && /^timestamp/.test(type)) params.end_date += `T23:59:59.999999${type.endsWith('z') ? 'Z' : ''}`
	return params
}

function choosePeriod() {
	$('custom').hidden = $('period').value !== 'custom'
	$('to').min = $('custom').hidden ? '' : $('from').value
	if ($('to').reportValidity()) ask()
}

// --- Live updates

const live = { tries: 0 }
const isOpen = () => live.socket?.readyState === 1
const send = (message) => live.socket.send(JSON.stringify(message))
const { dataset: shown } = $('state')

function unsubscribe(tile) {
	if (tile.asked) send({ type: 'unsubscribe', id: tile.id, params: tile.asked })
	tile.asked = null
}

function refresh(tile) {
	const room = tile.asked || all().filter(({ asked }) => asked).length < 200 // what one socket may have
	if (!isOpen() || !room) return load(tile)
	tile.asked = tile.params
	send({ type: 'subscribe', id: tile.id, params: tile.params })
}

function ask(every) {
	for (const tile of all()) {
		const params = paramsOf(tile.metric)
		const key = JSON.stringify(params)
		if (key === tile.key && !every) continue
		if (key !== tile.key) redraw(tile, { params, key, etag: null, busy: true, problem: null }, unsubscribe(tile))
		if (live.begun) refresh(tile)
	}
}

function hear(message) {
	const { id, params, etag, result } = message
	const tile = tiles.get(id)
	live.tries = 0
	if (!id) notice(message.title, message.detail)
	if (JSON.stringify(params) === tile?.key) accept(tile, { etag, data: result, problem: !result && message })
}

function connect() {
	clearTimeout(live.timer)
	if (live.socket) return
	const socket = live.socket = new WebSocket(new URL('live', location.href.replace('http', 'ws')))
	socket.onopen = () => {
		if (hasToken()) send(authorization())
		shown.state = 'live'
		ask(true)
	}
	socket.onmessage = ({ data }) => hear(parse(data))
	socket.onclose = disconnected
}

function disconnected({ code }) {
	live.socket = null
	for (const tile of all()) tile.asked = null
	const why = { 4401: 'refused', 4403: 'scope' }[code]
	shown.state = why ? 'off' : 'down'
	if (why) return askAgain(why)
	const seconds = min(30, 2 ** live.tries++) * (0.5 + Math.random()) // jitter, or all pages return at once
	live.timer = setTimeout(connect, seconds * 1000)
	for (const tile of all()) if (!tile.result || tile.busy) load(tile)
}

function poll() {
	if (document.hidden || !live.begun) return
	ask()
	for (const tile of all()) {
		if (!tile.asked || tile.problem) refresh(tile)
		else if (!tile.metric.live) load(tile)
	}
}

// --- Places: as in react-grid-layout, gaps close upwards

const ROW = 32
const grid = $('grid')
const screen = {}
let places = []
let drag

const clamp = (low, value, high) => max(low, min(value, high))
const stored = ({ metric }) => metric.layouts.find((item) => item.breakpoint === (screen.small ? 'lg' : screen.name))
const overlap = (a, b) => a.id !== b.id && a.x < b.x + b.w && b.x < a.x + a.w
const placeOf = ({ id }, list = places) => list.find((item) => item.id === id)
const sorted = (items) => [...items].sort((a, b) => a.y - b.y || a.x - b.x)
const bottom = (items) => max(0, ...items.map(({ y, h }) => y + h))

// Where all of md is at x = 0, it was one column; react-grid-layout's own has ten.
function measure() {
	const md = all().flatMap(({ metric }) => metric.layouts.filter((item) => item.breakpoint === 'md'))
	const [name, columns] = innerWidth < 640 ? ['sm', 1] : innerWidth < 1000 && md[0] ? ['md', md.some(({ x }) => x) ? 10 : 1] : ['lg', 12]
	assign(screen, { name, columns, small: name === 'sm' })
}

function wishes() {
	const { columns, small } = screen
	const placed = all().filter(stored).map((tile) => ({ ...stored(tile), id: tile.id }))
	const most = max(1, floor(columns / 4))
	const rest = all().filter((tile) => !stored(tile)).map(({ id }, n, { length }) => {
		const w = columns / min(most, length - n + n % most) // fills the last row
		return { id, x: n % most * w, y: bottom(placed) + n, w, h: 8 }
	})
	return sorted([...placed, ...rest]).map((item) => {
		const w = clamp(1, item.w, columns)
		return { ...item, w, x: clamp(0, item.x, columns - w), h: small ? clamp(5, item.h, 11) : item.h, static: item.static && !small }
	})
}

function compact(items) {
	const done = items.filter((item) => item.static)
	for (const item of items.filter((each) => !each.static)) {
		const place = { ...item, y: bottom(done.filter((other) => !other.static && overlap(item, other))) }
		const inWay = (other) => overlap(place, other) && place.y < other.y + other.h && other.y < place.y + place.h
		for (let hit; (hit = done.find(inWay));) place.y = hit.y + hit.h
		done.push(place)
	}
	return done
}

// The held tile passes a neighbour when its leading edge is past the middle of it.
function arrange(from, held) {
	const others = sorted(from).filter(({ id }) => id !== held.id)
	const edge = held.y > placeOf(held, from).y ? held.y + held.h : held.y
	const index = others.findIndex((other) => overlap(other, held) && other.y + other.h / 2 > edge)
	others.splice(index < 0 ? others.length : index, 0, held)
	return compact(others)
}

function putAt({ style }, { x, y, w, h }) {
	const share = 100 / screen.columns
	style.cssText = `left:${x * share}%; width:${w * share}%; top:${y * ROW}px; height:${h * ROW}px`
}

function lay(next, held) {
	places = next
	for (const item of next) {
		const { cell } = tiles.get(item.id)
		cell.classList.toggle('movable', !screen.small && !item.static && mayWrite())
		if (item.id !== held) putAt(cell, item)
	}
	grid.style.height = `${bottom(next) * ROW}px`
}

// Focus and reading order follow the eye.
function layOut() {
	if (drag) return
	measure()
	lay(compact(wishes()))
	sorted(places).forEach(({ id }, i) => {
		const [{ cell }, there] = [tiles.get(id), grid.children[i]]
		if (cell !== there) grid.insertBefore(cell, there)
	})
}

function store({ id, x, y, w, h }) {
	const { metric } = tiles.get(id)
	const rest = metric.layouts.filter((item) => item.breakpoint !== screen.name)
	metric.layouts = [...rest, { breakpoint: screen.name, x, y, w, h, static: false }]
	return api('PUT', `${pathOf(id)}/layouts`, metric.layouts)
}

async function save() {
	const moved = places.filter((item) => ['x', 'y', 'w', 'h'].some((side) => stored(tiles.get(item.id))?.[side] !== item[side]))
	live.saving = true
	const stores = moved.map(store)
	layOut()
	for (const { reason } of await Promise.allSettled(stores)) if (reason) fail('The place was not stored')(reason)
	live.saving = false
	list(true)
}

// --- Moving

function nudge({ tile, from, item }, { x = 0, y = 0, w = 0, h = 0 }, held) {
	const { columns } = screen
	const wide = clamp(min(2, columns), item.w + w, columns - item.x)
	lay(arrange(from, { ...item, w: wide, h: max(3, item.h + h), x: clamp(0, item.x + x, columns - wide), y: max(0, item.y + y) }), held)
	return placeOf(tile)
}

function grab({ button, target, pageX, pageY, pointerId }) {
	if (button || drag || !target.closest('.movable :is(.head, .handle)') || target.closest('.menu')) return
	const tile = tileOf(target)
	drag = { tile, resize: target.matches('.handle'), x: pageX, y: pageY, from: places, item: placeOf(tile) }
	tile.cell.setPointerCapture(pointerId)
}

function pull(event) {
	if (!drag || drag.keys) return
	const { tile: { id, cell }, item, resize } = drag
	const [dx, dy] = [event.pageX - drag.x, event.pageY - drag.y]
	if (!drag.begun && abs(dx) + abs(dy) < 4) return
	drag.begun = true
	cell.classList.add('held')
	const wide = grid.clientWidth / screen.columns
	const [x, y] = [round(dx / wide), round(dy / ROW)]
	if (resize) assign(cell.style, { width: `${item.w * wide + dx}px`, height: `${item.h * ROW + dy}px` })
	else cell.style.transform = `translate(${dx}px, ${dy}px)`
	putAt($('ghost'), nudge(drag, resize ? { w: x, h: y } : { x, y }, id))
	if (event.clientY > innerHeight - 48) scrollBy(0, 14)
}

function release(keep) {
	const { tile, from, begun } = drag || {}
	drag = null
	if (!begun) return
	tile.cell.classList.remove('held', 'keyed')
	lay(keep ? places : from)
	if (keep) save()
	part(tile, 'section').focus()
}

function startKeys(tile) {
	part(tile, 'section').focus()
	tile.cell.classList.add('keyed')
	drag = { tile, from: places, keys: true, begun: true }
}

// Up and down pass a neighbour: without gaps, one row is no place.
function moveKeys({ key, shiftKey }, tile) {
	const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[key] || []
	if (key === 'Enter') release(true)
	if (dx === undefined) return key === 'Enter'
	const item = placeOf(tile)
	const next = sorted(places).filter((other) => overlap(other, item) && (other.y - item.y) * dy > 0).at(min(0, dy))
	const y = next ? next.y - item.y + (dy > 0 && next.h - item.h) : 0
	const now = nudge({ tile, from: places, item }, shiftKey ? { w: dx, h: dy } : { x: dx, y })
	$('spoken').textContent = `Column ${now.x + 1}, row ${now.y + 1}, ${now.w} wide, ${now.h} high`
	return true
}

// --- Metrics

function add({ id }) {
	const cell = $('tile').content.firstElementChild.cloneNode(true)
	cell.dataset.id = id
	tiles.set(id, { id, cell, busy: true })
	grid.insertBefore(cell, $('ghost'))
}

function merge(metrics) {
	for (const tile of all()) {
		if (metrics.some(({ id }) => id === tile.id)) continue
		unsubscribe(tile)
		unpoint()
		tiles.delete(tile.id)
		tile.cell.remove()
	}
	for (const metric of metrics) {
		if (!tiles.has(metric.id)) add(metric)
		redraw(tiles.get(metric.id), { metric })
	}
	$('none').hidden = metrics.length > 0
	layOut()
	ask()
}

async function list(fresh) {
	if (document.hidden) return
	try {
		const { data, etag } = await api('GET', 'metrics', null, !fresh && live.etag)
		write($('banner'))
		if (drag || live.saving) return
		live.etag = etag
		if (data) merge(data.metrics)
		if (!live.begun) connect(live.begun = true)
	} catch (problem) {
		if (!live.begun) shown.state = 'off'
		write($('banner'), problem.status !== 401 && explain(problem))
	}
}

// --- A prompt makes a tile

async function propose() {
	const prompt = $('prompt').value.trim()
	const typed = (columns) => columns.map(({ name, type }) => `${name} (${type})`).join(', ') || 'none'
	$('preview').disabled = true
	try {
		const { data } = await api('POST', 'metrics?dry_run=true', { query_generation_prompt: prompt })
		write($('sql'), data.query)
		write($('facts'), `Columns: ${typed(data.columns)}\nParameters: ${typed(data.parameters)}`)
		$('title').value = prompt.slice(0, 120)
		$('keeping').hidden = write($('refused'))
	} catch (problem) {
		$('keeping').hidden = !write($('refused'), explain(problem))
	}
	$('preview').disabled = $('draft').hidden = false
	$('draft').focus()
}

async function keep() {
	const kept = await api('POST', 'metrics', { query: $('sql').textContent, title: $('title').value }).catch(fail('Not kept'))
	if (!kept) return
	actions.drop($('prompt').value = '')
	await list(true)
	part(tiles.get(kept.data.id), 'section').focus()
}

// --- Buttons

function asked(box, tile) {
	write(box.querySelector('b'), titleOf(tile))
	box.returnValue = ''
	box.showModal()
	return new Promise((resolve) => { box.onclose = () => resolve(box.returnValue) })
}

async function change(...request) {
	await api(...request).catch(fail('Not changed'))
	list(true)
}

whenSignedIn(() => {
	if (isOpen()) ask(true, send(authorization()))
	else if (live.begun) connect()
	list(true)
})

const actions = {
	retry: (tile) => refresh(tile, redraw(tile, { problem: null, busy: true })),
	table: (tile) => redraw(tile, { asTable: !tile.asTable }, unpoint()),
	keys: startKeys,
	drop: () => { $('draft').hidden = true },
	async rename(tile) {
		$('name').value = titleOf(tile)
		if (await asked($('renaming'), tile)) change('PATCH', pathOf(tile.id), { title: $('name').value, version: tile.metric.version })
	},
	async delete(tile) {
		if (await asked($('deleting'), tile)) change('DELETE', `${pathOf(tile.id)}?version=${tile.metric.version}`)
	},
}

function clicked({ target, detail }) {
	const button = target.closest('[data-do]')
	for (const menu of document.querySelectorAll('.menu[open]')) menu.open = !button && menu.contains(target)
	if (button && !(detail && button.matches('.handle'))) actions[button.dataset.do](tileOf(button)) // a mouse on the handle drags
}

function pressed(event) {
	const { key, target } = event
	const tile = tileOf(target)
	const menu = document.querySelector('.menu[open]')
	if (key === 'Escape') menu ? menu.firstElementChild.focus(menu.open = false) : unpoint(release())
	else if (drag?.keys && moveKeys(event, tile)) event.preventDefault()
}

function left({ target, relatedTarget }) {
	if (drag?.keys && tileOf(relatedTarget) !== tileOf(target)) release()
}

function seen() {
	list()
	poll()
	if (live.begun && !isAsking()) connect()
}

const forms = { ask: propose, keeping: keep }
document.onsubmit = (event) => forms[event.target.id]?.(event.preventDefault())
document.onclick = clicked
document.onkeydown = pressed
document.onvisibilitychange = window.ononline = seen
window.onresize = layOut
assign(grid, { onpointerdown: grab, onpointermove: pull, onpointerup: () => release(true), onpointercancel: () => release() })
grid.addEventListener('focusout', left)
$('period').onchange = $('custom').onchange = choosePeriod
list()
setInterval(list, 15000)
setInterval(poll, 30000)
setTimeout(poll, 2000)
