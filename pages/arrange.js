// Arranging is a mode: nothing is stored until it is done, because it is for everybody.

import { api, explain, pathOf } from './api.js'
import { $, notice } from './dom.js'
import { arrange, bottom, clamp, fill, rowBeyond, sorted } from './places.js'
import { all, part, tileOf, tiles } from './tiles.js'

const { ceil, floor, max, min, round } = Math

const ROW = 32 // pixels

// By what a tile shows: the narrowest in pixels and the lowest in rows; and for tiles that nobody has placed the height,
// how many stand in a row at most, and where: numbers come first and tables last.
const SIZES = {
	number: { narrowest: 170, lowest: 6, h: 6, most: 4, y: -1e6 },
	chart: { narrowest: 240, lowest: 8, h: 9, most: 3, y: 1e6 },
	table: { narrowest: 240, lowest: 8, h: 10, most: 2, y: 2e6 },
}

const grid = $('grid')
let screen = null // the breakpoint whose layouts hold, and how many columns it has
let places = []
let steps = null // while arranging, the places before each change
let drag = null

const sizeOf = ({ metric: { chart } }) => SIZES[chart] || SIZES.chart
const placeOf = ({ id }) => places.find((item) => item.id === id)
const stored = ({ metric }) => metric.layouts.find(({ breakpoint }) => breakpoint === screen.breakpoint)
export const isArranging = () => !!steps || grid.ariaBusy === 'true'

// --- Where everything goes

function measure() {
	if (innerWidth < 640) return { breakpoint: 'lg', columns: 1 }
	const hasMd = all().some(({ metric }) => metric.layouts.some(({ breakpoint }) => breakpoint === 'md'))
	return innerWidth < 1000 && hasMd ? { breakpoint: 'md', columns: 10 } : { breakpoint: 'lg', columns: 12 }
}

function narrowest(size) {
	return min(screen.columns, ceil(screen.columns * size.narrowest / grid.clientWidth))
}

// In rows of as many as fit, the last as full as the others.
function inRows(list, size) {
	const { columns } = screen
	const most = min(size.most, floor(columns / narrowest(size)))
	const each = ceil(list.length / ceil(list.length / most))
	return list.map(({ id }, n) => {
		const [row, i] = [floor(n / each), n % each]
		const share = columns / min(each, list.length - row * each)
		const x = round(i * share)
		return { id, x, y: size.y + row * size.h, w: round((i + 1) * share) - x, h: size.h }
	})
}

function fit(item) {
	const { columns } = screen
	const size = sizeOf(tiles.get(item.id))
	const w = clamp(narrowest(size), item.w, columns)
	return { ...item, x: clamp(0, item.x, columns - w), w, h: max(size.lowest, item.h) }
}

function wishes() {
	const list = all().filter(({ cell }) => !cell.hidden)
	const placed = list.filter(stored).map((tile) => ({ ...stored(tile), id: tile.id }))
	const free = list.filter((tile) => !stored(tile))
	const rows = Object.values(SIZES).flatMap((size) => inRows(free.filter((tile) => sizeOf(tile) === size), size))
	return sorted([...placed, ...rows]).map(fit)
}

function lay(next) {
	places = next
	const share = 100 / screen.columns
	for (const { id, x, y, w, h } of next) {
		const { style } = tiles.get(id).cell
		style.cssText = `left:${x * share}%; width:${w * share}%; top:${y * ROW}px; height:${h * ROW}px`
	}
	grid.style.height = `${bottom(next) * ROW}px`
}

// Focus and reading order follow the eye.
function order() {
	const cells = sorted(places).map(({ id }) => tiles.get(id).cell)
	if (cells.some((cell, i) => cell !== grid.children[i])) grid.prepend(...cells)
}

export function layOut() {
	if (steps) return
	screen = measure()
	$('arrange').hidden = screen.columns === 1
	lay(fill(wishes(), screen.columns))
	order()
}

// --- The mode

function setMode(arranging) {
	steps = arranging ? [] : null
	document.body.classList.toggle('arranging', arranging)
	$('undo').disabled = true
	for (const tile of all()) part(tile, 'section').tabIndex = arranging ? 0 : -1
}

export function begin() {
	setMode(true)
	$('done').focus()
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
	const { breakpoint } = screen
	const rest = metric.layouts.filter((item) => item.breakpoint !== breakpoint)
	metric.layouts = [...rest, { breakpoint, x, y, w, h, static: false }]
	return () => api('PUT', `${pathOf(id)}/layouts`, metric.layouts)
}

// One after the other: all at once would want more connections than the service has.
export async function done() {
	const differs = (item) => ['x', 'y', 'w', 'h'].some((side) => stored(tiles.get(item.id))?.[side] !== item[side])
	const stores = steps.length ? places.filter(differs).map(keep) : []
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

function nudge(from, item, { x = 0, y = 0, w = 0, h = 0 }) {
	const wide = min(item.w + w, screen.columns - item.x)
	lay(arrange(from, fit({ ...item, x: item.x + x, y: item.y + y, w: wide, h: item.h + h })))
}

function grab({ button, target, pageX, pageY, pointerId }) {
	if (!steps || button || drag || !target.closest('.head, .handle')) return
	const tile = tileOf(target)
	drag = { tile, resize: target.matches('.handle'), x: pageX, y: pageY, from: places, item: placeOf(tile) }
	tile.cell.classList.add('held')
	tile.cell.setPointerCapture(pointerId)
}

function pull({ pageX, pageY }) {
	if (!drag) return
	const x = round((pageX - drag.x) / grid.clientWidth * screen.columns)
	const y = round((pageY - drag.y) / ROW)
	nudge(drag.from, drag.item, drag.resize ? { w: x, h: y } : { x, y })
}

function release(keeping) {
	if (!drag) return
	const { tile, from } = drag
	drag = null
	tile.cell.classList.remove('held')
	if (keeping) step(from)
	else lay(from)
	part(tile, 'section').focus()
}

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }

// Up and down pass a neighbour: nothing floats, so one row is no place.
function pressed(event) {
	if (event.key === 'Escape') release()
	const tile = steps && tileOf(event.target)
	const [dx, dy] = ARROWS[event.key] || []
	if (!tile || dx === undefined) return
	event.preventDefault()
	const [from, item] = [places, placeOf(tile)]
	nudge(from, item, event.shiftKey ? { w: dx, h: dy } : { x: dx, y: dy && rowBeyond(from, item, dy) - item.y })
	step(from)
	const { x, y, w, h } = placeOf(tile)
	notice(`Column ${x + 1}, row ${y + 1}, ${w} wide, ${h} high`)
}

grid.onpointerdown = grab
grid.onpointermove = pull
grid.onpointerup = () => release(true)
grid.onpointercancel = () => release()
document.addEventListener('keydown', pressed)
window.addEventListener('resize', layOut)
