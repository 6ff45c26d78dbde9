// The tiles: what each shows, and what it says when there is nothing to show.

import { explain, inFull } from './api.js'
import { draw, sentences, unpoint, words, write } from './charts.js'
import { $ } from './dom.js'
import { field, learnValues } from './fields.js'
import { isOfPeriod, ownPeriod, spanOf, takesPeriod } from './period.js'
import { look, view } from './view.js'

const { assign } = Object

export const tiles = new Map()
export const all = () => [...tiles.values()]
export const tileOf = (node) => tiles.get(node?.closest('.cell')?.dataset.id)
export const part = (tile, name) => tile.cell.querySelector(name)
export const titleOf = ({ metric }) => metric.title || words(metric.id)

export function add(metric) {
	const cell = $('tile').content.firstElementChild.cloneNode(true)
	cell.dataset.id = metric.id
	const tile = { id: metric.id, cell, metric, params: {}, missing: [], busy: true }
	tiles.set(metric.id, tile)
	$('grid').insertBefore(cell, $('ghost'))
	return tile
}

export function remove(tile) {
	unpoint()
	tiles.delete(tile.id)
	tile.cell.remove()
}

// --- Kinds: what can be drawn of these columns

const NUMBERS = /^(int[248]|numeric|float[48])$/
const TIMES = /^(date|timestamp(tz)?)$/

export function guessChart(columns) {
	const numeric = columns.map(({ type }) => NUMBERS.test(type))
	if (numeric.every(Boolean)) return columns.length < 4 ? 'number' : 'table'
	if (!numeric.includes(true)) return 'table'
	return columns.some(({ type }) => TIMES.test(type)) ? 'line' : 'bar'
}

function kindsOf({ metric: { chart, columns } }) {
	const guessed = guessChart(columns)
	const chartKind = ['number', 'table'].includes(chart) ? guessed : chart
	const kinds = { table: 'table', chart: chartKind, number: 'number' }
	if (['number', 'table'].includes(chartKind)) delete kinds.chart
	if (!columns.some(({ type }) => NUMBERS.test(type))) delete kinds.number
	return kinds
}

export function kindOf(tile) {
	return kindsOf(tile)[view.as[tile.id]] || tile.metric.chart
}

// --- Parameters of its own; a name that several tiles share is asked for once, at the top

let shared = new Map()
const same = ({ name, type }) => `${name} ${type}`

export function shareParameters() {
	const found = new Map()
	for (const { id, metric } of all()) {
		for (const parameter of metric.parameters.filter((each) => !isOfPeriod(each))) {
			const key = same(parameter)
			found.set(key, { id, parameter, count: (found.get(key)?.count || 0) + 1 })
		}
	}
	shared = new Map([...found].filter(([, { count }]) => count > 1))
	return [...shared.values()]
}

export const keyOf = ({ id }, parameter) => (shared.has(same(parameter)) ? '' : `${id}.`) + parameter.name
export const setValue = (key) => (value) => look({ values: { __proto__: null, ...view.values, [key]: value } })

// Made anew only when the parameters are others, or typing would lose its place.
export function fieldsInto(box, list, fresh) {
	const key = JSON.stringify(list)
	if (box.made !== key || fresh) {
		box.replaceChildren(...list.map(([id, name, parameter]) => field(id, parameter, view.values[name], setValue(name))))
	}
	assign(box, { made: key, hidden: !list.length })
	list.forEach(([, name], i) => {
		const input = box.children[i].querySelector('input, select')
		if (input !== document.activeElement) input.value = view.values[name] || ''
	})
}

export function showFields(tile, fresh) {
	const isOwn = (parameter) => !isOfPeriod(parameter) && (parameter.required || !shared.has(same(parameter)))
	const own = tile.metric.parameters.filter(isOwn)
	fieldsInto(part(tile, '.fields'), own.map((parameter) => [tile.id, keyOf(tile, parameter), parameter]), fresh)
}

// --- Drawing, once a frame however much has changed

const dirty = new Set()

export function redraw(tile, change) {
	if (!dirty.size) requestAnimationFrame(drawDirty)
	dirty.add(assign(tile, change))
}

function drawDirty() {
	const list = [...dirty]
	dirty.clear()
	for (const tile of list) if (tiles.has(tile.id)) show(tile)
}

function stateOf({ fault, missing, problem, result }) {
	if (fault) return 'broken'
	if (missing.length) return 'ask'
	if (problem) return result ? 'stale' : 'error'
	if (!result) return 'loading'
	return result.records.length ? 'ready' : 'empty'
}

// Who may read a definition may know where it is wrong.
function placeOfFault({ id, source, fault, place }) {
	const file = source === 'file' ? `queries/${id}.sql` : 'SQL'
	return `${[file, place].filter(Boolean).join(':')}: ${fault}`
}

function label(tile) {
	const { cell, metric, problem, result, fault, missing } = tile
	const title = titleOf(tile)
	const texts = {
		h2: title,
		'.about': metric.description,
		'.own': ownPeriod(metric, spanOf(view)),
		'.why': problem && explain(problem),
		'.full': problem && inFull(problem),
		'.age': result && `As of ${new Date(tile.at).toLocaleTimeString()}.`,
		'.asked': `Choose ${missing.map(({ name }) => words(name)).join(' and ')}.`,
		'.fault': fault && placeOfFault(fault),
	}
	for (const name in texts) write(part(tile, name), texts[name])
	assign(part(tile, 'h2'), { title })
	part(tile, '.about').title = metric.description
	assign(part(tile, 'section'), { ariaLabel: title, ariaBusy: !!tile.busy && !fault && !missing.length })
	const [kinds, now] = [kindsOf(tile), kindOf(tile)]
	const status = problem ? problem.status || 0 : ''
	assign(cell.dataset, { state: stateOf(tile), chart: now, editable: metric.is_editable, status })
	for (const kind of ['table', 'chart', 'number']) {
		part(tile, `[data-as=${kind}]`).hidden = !kinds[kind] || kinds[kind] === now
	}
}

function optionsOf({ metric, previous }) {
	const span = spanOf(view)
	const spans = span && !span.all && takesPeriod(metric)
	const iso = (at) => new Date(at).toISOString().slice(0, span.exact ? 24 : 10)
	return { before: previous, ...(spans && { from: iso(span.from), to: iso(span.to) }) }
}

function show(tile) {
	const { metric, result } = tile
	label(tile)
	const shown = { ...metric, title: titleOf(tile), chart: kindOf(tile) }
	if (result) draw(part(tile, '.view'), shown, result, optionsOf(tile))
}

// What came in: a result, or a problem beside which the last result stays. No data means that what there is, is new.
export function accept(tile, { etag, data, problem }) {
	if (problem) return redraw(tile, { busy: false, problem })
	const result = data || tile.result
	learnValues(result)
	redraw(tile, { busy: false, problem: null, etag, at: Date.now(), result })
}

export const summaryOf = (tile) => sentences([titleOf(tile), tile.metric.description])
