// The tiles: what each shows, and what it says when there is nothing to show.

import { explain, inFull } from './api.js'
import { draw, isNumber, isTime, unpoint, words, write } from './charts.js'
import { $ } from './dom.js'
import { field, learnValues } from './fields.js'
import { axisOf, ownParameters, ownPeriod, spanOf } from './period.js'
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
	$('grid').append(cell)
	return tile
}

export function remove(tile) {
	unpoint()
	tiles.delete(tile.id)
	tile.cell.remove()
	tile.key = null // no answer is for it any more
}

// --- Kinds: what can be drawn of these columns

export function guessChart(columns) {
	if (columns.every(isNumber)) return columns.length < 4 ? 'number' : 'table'
	if (!columns.some(isNumber)) return 'table'
	return columns.some(isTime) ? 'line' : 'bar'
}

function kindsOf({ metric: { chart, columns } }) {
	const kinds = { table: 'table' }
	if (columns.some(isNumber)) kinds.number = 'number'
	const drawn = [chart, guessChart(columns)].find((kind) => kind !== 'number' && kind !== 'table')
	return drawn ? { ...kinds, chart: drawn } : kinds
}

export function kindOf(tile) {
	return kindsOf(tile)[view[`as.${tile.id}`]] || tile.metric.chart
}

// --- Parameters of its own; a name that several tiles share is asked for once, at the top

let shared = new Map()
const same = ({ name, type }) => `${name} ${type}`
const isShared = (parameter) => shared.has(same(parameter))

export function shareParameters() {
	const seen = new Set()
	shared = new Map()
	for (const parameter of all().flatMap(({ metric }) => ownParameters(metric))) {
		const key = same(parameter)
		if (seen.has(key)) shared.set(key, parameter)
		seen.add(key)
	}
	fieldsInto($('shared'), [...shared.values()])
}

export const keyOf = ({ id }, parameter) => (isShared(parameter) ? 'p.' : `p.${id}.`) + parameter.name

// Made anew only when the parameters are others, or typing would lose its place.
function fieldsInto(box, parameters, tile) {
	const keys = parameters.map((parameter) => keyOf(tile || {}, parameter))
	const made = JSON.stringify([keys, parameters])
	if (box.made !== made) {
		box.replaceChildren(...parameters.map((parameter, i) => field(parameter, (value) => look({ [keys[i]]: value }))))
	}
	assign(box, { made, hidden: !keys[0] })
	keys.forEach((key, i) => {
		const input = box.children[i].querySelector('input, select')
		if (input !== document.activeElement) input.value = view[key] || ''
	})
}

export function showFields(tile) {
	fieldsInto(part(tile, '.fields'), ownParameters(tile.metric).filter((each) => !isShared(each)), tile)
}

// --- What is seen of it

export const isWaiting = ({ metric, missing }) => !!metric.fault || missing.length > 0

function stateOf({ metric, missing, problem, result }) {
	if (metric.fault) return 'broken'
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
	const { cell, metric, problem, result, missing } = tile
	const title = titleOf(tile)
	const texts = {
		h2: title,
		'.about': metric.description,
		'.own': ownPeriod(metric, spanOf(view)),
		'.why': problem && explain(problem),
		'.full': problem && inFull(problem),
		'.age': result && `As of ${new Date(tile.at).toLocaleTimeString()}.`,
		'.asked': `Choose ${missing.map(({ name }) => words(name)).join(' and ')}.`,
		'.fault': metric.fault && placeOfFault(metric),
	}
	for (const name in texts) write(part(tile, name), texts[name])
	part(tile, 'h2').title = title
	part(tile, '.about').title = metric.description
	assign(part(tile, 'section'), { ariaLabel: title, ariaBusy: tile.busy && !isWaiting(tile) })
	const [kinds, chart] = [kindsOf(tile), kindOf(tile)]
	assign(cell.dataset, { state: stateOf(tile), chart, editable: metric.is_editable })
	for (const button of cell.querySelectorAll('[data-as]')) {
		const kind = kinds[button.dataset.as]
		button.hidden = !kind || kind === chart
	}
}

export function update(tile, change) {
	const { metric, result, previous } = assign(tile, change)
	label(tile)
	const shown = { ...metric, title: titleOf(tile), chart: kindOf(tile) }
	if (result) draw(part(tile, '.view'), shown, result, { before: previous, ...axisOf(metric, spanOf(view)) })
}

// What came in: a result, or a problem beside which the last result stays. No data means that what there is, is new.
export function accept(tile, { etag, data, problem }) {
	if (problem) return update(tile, { busy: false, problem })
	const result = data || tile.result
	learnValues(result)
	update(tile, { busy: false, problem: null, etag, at: Date.now(), result })
}
