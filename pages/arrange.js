// Arranging is a mode: nothing is stored until it is done, because it is for everybody.

import { api, explain, pathOf } from './api.js'
import { $, notice, say } from './dom.js'
import { arrange, bottom, clamp, compact, fill, neighbour, rows, sorted } from './places.js'
import { all, part, tileOf, tiles } from './tiles.js'

const { abs, ceil, floor, max, min, round } = Math
const { assign } = Object

const ROW = 32 // pixels
const NARROWEST = { number: 170, other: 240 } // pixels
const grid = $('grid')
const screen = {}
let places = []
let steps = null // while arranging, the places before each change
let drag = null

const placeOf = ({ id }) => places.find((item) => item.id === id)
const stored = ({ metric }) => metric.layouts.find((item) => item.breakpoint === (screen.small ? 'lg' : screen.name))
const isShown = ({ cell }) => !cell.hidden
export const isArranging = () => !!steps || grid.ariaBusy === 'true'

// --- Where everything goes

// Where all of md is at x = 0, it was one column; react-grid-layout's own has ten.
function measure() {
	const md = all().flatMap(({ metric }) => metric.layouts.filter(({ breakpoint }) => breakpoint === 'md'))
	const name = innerWidth < 640 ? 'sm' : innerWidth < 1000 && md[0] ? 'md' : 'lg'
	const columns = { sm: 1, md: md.some(({ x }) => x) ? 10 : 1, lg: 12 }[name]
	assign(screen, { name, columns, small: name === 'sm' })
}

function narrowest(chart) {
	const pixels = NARROWEST[chart] || NARROWEST.other
	return min(screen.columns, ceil(screen.columns * pixels / max(pixels, grid.clientWidth)))
}

// Numbers first and tables last, for tiles that nobody has placed.
function unplaced(placed) {
	const { columns } = screen
	const free = all().filter((tile) => isShown(tile) && !stored(tile))
	const ids = (test) => free.filter(({ metric }) => test(metric.chart)).map(({ id }) => id)
	const most = (wanted, chart) => min(wanted, floor(columns / narrowest(chart)))
	const numbers = rows(ids((chart) => chart === 'number'), { columns, most: most(4, 'number'), y: 0, h: 6 })
	const y = bottom(placed)
	const charts = rows(ids((chart) => !['number', 'table'].includes(chart)), { columns, most: most(3), y, h: 9 })
	const below = bottom([...charts, { y, h: 0 }])
	const tables = rows(ids((chart) => chart === 'table'), { columns, most: most(2), y: below, h: 10 })
	return { numbers, rest: [...charts, ...tables] }
}

function fit(item) {
	const { columns, small } = screen
	const tile = tiles.get(item.id)
	const { chart } = tile.metric
	const w = clamp(narrowest(chart), item.w, columns)
	const hasFields = !part(tile, '.fields').hidden
	const h = max(chart === 'number' ? 4 + 2 * hasFields : 7 + hasFields, item.h)
	const most = !small ? Infinity : chart === 'number' ? 5 : 11
	return { ...item, w, x: clamp(0, item.x, columns - w), h: min(h, most), static: !!item.static && !small }
}

function wishes() {
	const placed = all().filter((tile) => isShown(tile) && stored(tile)).map((tile) => ({ ...stored(tile), id: tile.id }))
	const { numbers, rest } = unplaced(placed)
	const lower = (item) => ({ ...item, y: item.y + bottom(numbers) })
	return sorted([...numbers, ...[...placed, ...rest].map(lower)]).map(fit)
}

function putAt({ style }, { x, y, w, h }) {
	const share = 100 / screen.columns
	style.cssText = `left:${x * share}%; width:${w * share}%; top:${y * ROW}px; height:${h * ROW}px`
}

function lay(next, held) {
	places = next
	for (const item of next) if (item.id !== held) putAt(tiles.get(item.id).cell, item)
	grid.style.height = `${bottom(next) * ROW}px`
}

// Focus and reading order follow the eye.
function order() {
	sorted(places).forEach(({ id }, i) => {
		const [{ cell }, there] = [tiles.get(id), grid.children[i]]
		if (cell !== there) grid.insertBefore(cell, there)
	})
}

export function layOut() {
	if (steps) return
	measure()
	$('arrange').hidden = screen.small
	lay(fill(compact(wishes()), screen.columns))
	order()
}

// --- The mode

function setMode(arranging) {
	steps = arranging ? [] : null
	document.body.classList.toggle('arranging', arranging)
	$('undo').disabled = true
	for (const { cell, id } of all()) {
		cell.classList.toggle('movable', arranging && !placeOf({ id })?.static)
		part({ cell }, 'section').tabIndex = arranging ? 0 : -1
	}
}

export function begin() {
	setMode(true)
	$('done').focus()
	say('Arranging. Tab to a tile; arrow keys move it, with Shift they resize it.')
}

export function undo() {
	lay(steps.pop())
	$('undo').disabled = !steps.length
	if (!steps.length) $('done').focus()
}

export function cancel() {
	setMode(false)
	layOut()
	$('arrange').focus()
}

function keep({ id, x, y, w, h }) {
	const { metric } = tiles.get(id)
	const rest = metric.layouts.filter((item) => item.breakpoint !== screen.name)
	metric.layouts = [...rest, { breakpoint: screen.name, x, y, w, h, static: false }]
	return () => api('PUT', `${pathOf(id)}/layouts`, metric.layouts)
}

// One after the other: all at once would want more connections than the service has.
export async function done() {
	const differs = (item) => ['x', 'y', 'w', 'h'].some((side) => stored(tiles.get(item.id))?.[side] !== item[side])
	const stores = (steps.length ? places : []).filter((item) => !item.static && differs(item)).map(keep)
	grid.ariaBusy = 'true'
	cancel()
	try {
		for (const store of stores) await store()
	} catch (problem) {
		notice('Some places were not stored', explain(problem))
	}
	grid.ariaBusy = 'false'
}

function step(before) {
	if (JSON.stringify(before) === JSON.stringify(places)) return
	steps.push(before)
	$('undo').disabled = false
}

// --- Moving, by pointer and by keys

function nudge(from, item, { x = 0, y = 0, w = 0, h = 0 }, held) {
	const { columns } = screen
	const wide = clamp(min(2, columns), item.w + w, columns - item.x)
	const place = { x: clamp(0, item.x + x, columns - wide), y: max(0, item.y + y) }
	lay(arrange(from, { ...item, ...place, w: wide, h: max(3, item.h + h) }), held)
	return placeOf(item)
}

function grab({ button, target, pageX, pageY, pointerId }) {
	if (button || drag || !target.closest('.movable :is(.head, .handle)')) return
	const tile = tileOf(target)
	drag = { tile, resize: target.matches('.handle'), x: pageX, y: pageY, from: places, item: placeOf(tile) }
	tile.cell.setPointerCapture(pointerId)
}

function pull(event) {
	if (!drag) return
	const { tile: { id, cell }, from, item, resize } = drag
	const [dx, dy] = [event.pageX - drag.x, event.pageY - drag.y]
	if (!drag.begun && abs(dx) + abs(dy) < 4) return
	drag.begun = true
	cell.classList.add('held')
	const wide = grid.clientWidth / screen.columns
	const [x, y] = [round(dx / wide), round(dy / ROW)]
	if (resize) assign(cell.style, { width: `${item.w * wide + dx}px`, height: `${item.h * ROW + dy}px` })
	else cell.style.transform = `translate(${dx}px, ${dy}px)`
	putAt($('ghost'), nudge(from, item, resize ? { w: x, h: y } : { x, y }, id))
	if (event.clientY > innerHeight - 48) scrollBy(0, 14)
}

function release(keep) {
	const { tile, from, begun } = drag || {}
	drag = null
	if (!begun) return
	tile.cell.classList.remove('held')
	lay(keep ? places : from)
	if (keep) step(from)
	part(tile, 'section').focus()
}

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }

// Up and down pass a neighbour: nothing floats, so one row is no place.
function moveKeys({ key, shiftKey }, tile) {
	const [dx, dy] = ARROWS[key]
	const [from, item] = [places, placeOf(tile)]
	const next = neighbour(places, item, dy)
	const y = next ? next.y - item.y + (dy > 0 && next.h - item.h) : 0
	const now = nudge(from, item, shiftKey ? { w: dx, h: dy } : { x: dx, y: dy && y })
	step(from)
	say(`Column ${now.x + 1}, row ${now.y + 1}, ${now.w} wide, ${now.h} high`)
}

function pressed(event) {
	if (event.key === 'Escape') release()
	const tile = steps && tileOf(event.target)
	if (!tile || !(event.key in ARROWS) || !tile.cell.matches('.movable')) return
	event.preventDefault()
	moveKeys(event, tile)
}

assign(grid, { onpointerdown: grab, onpointermove: pull })
assign(grid, { onpointerup: () => release(true), onpointercancel: () => release() })
document.addEventListener('keydown', pressed)
window.addEventListener('resize', layOut)
