// Draws what a metric answers as a chart, a number or a table, in any page:
//
//   <link rel="stylesheet" href="charts.css">
//   <div id="cost" style="height: 260px"></div>
//   <script type="module">
//     import { draw, parse } from './charts.js'
//     const answer = await fetch('/metrics/cost-avoided?start_date=2025-06-01&end_date=2025-06-30')
//     const metric = { title: 'Cost avoided', unit: 'USD', chart: 'line' }
//     draw(document.getElementById('cost'), metric, parse(await answer.text()), { from: '2025-06-01', to: '2025-06-30' })
//   </script>
//
// draw(box, metric, result, options) draws into a box that has a height; called again, it moves what is there. The chart
// is number, line, bar, stacked, hbar or table; what it cannot draw becomes a table. parse keeps all digits of the
// service's answer. Options: from and to, the period that was asked for (ISO 8601), which time axes span; before, the
// result of the period before, with which a number is compared.

const { abs, ceil, floor, log10, max, min } = Math
const { assign } = Object
const clamp = (low, value, high) => max(low, min(value, high))

// --- Elements: a view is [tag, attributes, text or views; left alone if undefined]. Patched in place, nodes keep
// focus and move by CSS transitions. Data become text and attributes, never markup.

const SVG = 'http://www.w3.org/2000/svg'

function patch(parent, views) {
	views.forEach(([tag, attributes, content], i) => {
		const space = tag === 'svg' ? SVG : parent.namespaceURI
		let node = parent.children[i]
		if (node?.localName !== tag) node = parent.insertBefore(document.createElementNS(space, tag), node)
		for (const name in attributes) set(node, name, attributes[name])
		if (content?.map) patch(node, content)
		else if (content !== undefined) write(node, content)
	})
	while (parent.children.length > views.length) parent.lastElementChild.remove()
}

function set(node, name, value) {
	if (name === 'style') node.style.cssText = value // as a strict policy wants it
	else if (value == null) node.removeAttribute(name)
	else node.setAttribute(name, value)
}

export function write(node, text) {
	if (node.textContent !== text) node.textContent = text || ''
}

export const sentences = (parts) => parts.filter(Boolean).map((part) => part.replace(/[.\s]*$/, '.')).join(' ')

// --- Numbers

const formats = new Map()

function format(value, options, Kind = Intl.NumberFormat) {
	const key = JSON.stringify(options)
	if (!formats.has(key)) formats.set(key, new Kind(undefined, options))
	return formats.get(key).format(value)
}

// A number that a double would not give back digit for digit (bigint, numeric) becomes a text.
export const parse = (json) => JSON.parse(json.replace(/"[^"\\]*(?:\\.[^"\\]*)*"|-?\d[\d.eE+-]*/g,
	(token) => (token[0] === '"' || String(+token) === token ? token : `"${token}"`)))

const [CURRENCIES, UNITS] = ['currency', 'unit'].map((kind) => new Set(Intl.supportedValuesOf(kind)))

// How the browser's language writes a unit, where it knows it.
const styleOf = (unit) =>
	(CURRENCIES.has(unit) ? { style: 'currency', currency: unit } : UNITS.has(unit) ? { style: 'unit', unit } : null)

// A unit stands at each number where the language has a sign for it, else once beside them.
const signOf = (unit) => (styleOf(unit) ? unit : '')
const captionOf = (unit) => (styleOf(unit) ? '' : unit || '')

function amount(value, unit, options) {
	const said = format(value, { ...options, ...styleOf(unit) })
	return captionOf(unit) ? `${said}\u00a0${unit}` : said
}

// All digits, but for the zeros at the end of PostgreSQL's averages.
function exact(value, unit) {
	if (value == null) return '–'
	const digits = String(value).replace(/(\.\d\d\d*?)0+$/, '$1')
	const places = /\.(\d{1,100})$/.exec(digits)?.[1].length || 0
	return amount(digits, unit, { minimumFractionDigits: places, maximumFractionDigits: 100 })
}

// Rounded, but to no fewer than five digits: 99.987 % is not 99.99 %, and 0.00012 is not 0.
const ROUNDED = { maximumFractionDigits: 2, maximumSignificantDigits: 5, roundingPriority: 'morePrecision' }
const plain = (value, unit) => (/\.\d{4}|e-/.test(value) ? amount(value, unit, ROUNDED) : exact(value, unit))

// --- Dates. The service's sessions are in UTC, and so is the page.

const DAY = 864e5
const millis = (text) => Date.parse(/T[\d:.]*$/.test(text) ? `${text}Z` : text)
const date = (at, options) => format(at, { timeZone: 'UTC', ...options }, Intl.DateTimeFormat)
const moment = (at) => date(at, { dateStyle: 'medium', ...(at % DAY && { timeStyle: at % 6e4 ? 'medium' : 'short' }) })

// --- Columns

export const isNumber = ({ type }) => /^(int[248]|numeric|float[48])$/.test(type)
export const isTime = ({ type }) => /^(date|timestamp(tz)?)$/.test(type)
const isText = (column) => !isNumber(column) && !isTime(column)
export const words = (name) => name.replaceAll('_', ' ')
const number = (value) => (value == null || !isFinite(value) ? null : +value)

function cell(value, column) {
	if (value == null || isNumber(column)) return exact(value)
	if (isTime(column)) return value.replace('T', ' ').replace(/\.\d+/, '').replace('+00:00', '')
	return typeof value === 'object' ? JSON.stringify(value) : String(value)
}

const SHORT = { '%': 'percent', pct: 'percent', percent: 'percent', usd: 'USD', eur: 'EUR', ms: 'millisecond',
	seconds: 'second', hours: 'hour' }

// The metric's, unless a column's name ends in another.
function unitOf({ name }, { unit = '' }) {
	const own = name.toLowerCase().split('_').at(-1)
	return SHORT[own] || SHORT[unit.toLowerCase()] || unit
}

// --- What a result says. Each series has values (and raws, what they were before they became doubles) by place in x,
// the times or names, with holes where it has no rows.

function read({ columns, records }, chart) {
	const [[time], numbers, texts] = [isTime, isNumber, isText].map((test) => columns.filter(test))
	const heads = time ? [] : texts[0] ? texts.splice(0, chart === 'stacked' ? 1 : Infinity) : numbers.splice(0, 1)
	const join = (row, list) => list.map((column) => cell(row[column.name], column)).join(' · ')
	const placed = (row) => ({ row, at: time ? millis(row[time.name]) : join(row, heads), name: join(row, texts) })
	const all = records.map(placed)
	const rows = time ? all.filter(({ at }) => isFinite(at)).sort((a, b) => a.at - b.at) : all
	if (!rows[0] || !numbers[0]) return null
	const x = placesOf(rows)
	const ordered = heads.every(isNumber) // times, and years or hours too
	return { x, timed: !!time, ordered, dropped: all.length - rows.length, series: seriesOf(rows, numbers),
		label: (i) => (time ? moment(x[i]) : x[i]) }
}

// Each row gets its place; when two of a series would have the same, all have one of their own.
function placesOf(rows) {
	const all = rows.map(({ at }) => at)
	const isUnique = new Set(rows.map(({ at, name }) => `${at}\n${name}`)).size === rows.length
	const x = isUnique ? [...new Set(all)] : all
	const places = new Map(x.map((at, i) => [at, i]))
	rows.forEach((each, i) => assign(each, { place: isUnique ? places.get(each.at) : i }))
	return x
}

function seriesOf(rows, numbers) {
	return [...Map.groupBy(rows, ({ name }) => name)].flatMap(([name, own]) => numbers.map((column) => {
		const raws = []
		for (const { row, place } of own) raws[place] = row[column.name]
		const values = raws.map(number)
		const size = values.reduce((sum, value) => sum + abs(value), 0)
		const title = [name, (!name || numbers[1]) && words(column.name)].filter(Boolean).join(' · ')
		return { name: title, column, raws, values, to: values, size }
	}))
}

// --- Which series are drawn: as many as can be told apart, the largest, and the rest on demand

const MOST = 8 // series
const ROWS = 200 // at a time

function few({ open }, list, limit) {
	const most = limit + open * ROWS
	return list.slice(0, list.length > most + 2 ? most : Infinity) // `2 more` would be no shorter than the two
}

// Otherwise each keeps its place, and with it its colour.
function largestFirst(all) {
	const ninth = all.map(({ size }) => size).sort((a, b) => b - a)[MOST]
	return all.toSorted((a, b) => (b.size > ninth) - (a.size > ninth))
}

// Columns share an axis when they are of one unit, and none is so small beside another that it would lie flat.
function axes(series, metric) {
	const groups = []
	for (const [column, own] of Map.groupBy(series, (each) => each.column)) {
		const [unit, size] = [unitOf(column, metric), max(...own.map((each) => each.size))]
		const isLike = (a, b) => max(a, b) <= (unit ? 50 : 10) * (min(a, b) || Infinity)
		const group = groups.find((each) => each.unit === unit && (metric.chart === 'stacked' || isLike(each.size, size)))
		if (group) group.all.push(...own)
		else groups.push({ unit, size, all: own })
	}
	return groups
}

function panelsOf(chart) {
	const { said, metric, hidden } = chart
	let n = 0
	const coloured = (each) => ({ ...each, colour: `c${n % MOST} d${floor(n++ / MOST) % 3}` })
	return axes(said.series, metric).map(({ unit, all }) => {
		const ordered = largestFirst(all).map(coloured)
		const chosen = few(chart, ordered, MOST)
		const series = chosen.filter(({ name }) => !hidden.has(name))
		const rest = ordered.slice(chosen.length)
		return { unit, all, chosen, series: metric.chart === 'stacked' ? stack(series, rest, said.x) : series }
	})
}

// Each from the end of the one before to its own; what is below zero goes down.
function stack(series, rest, x) {
	const [up, down] = [x.map(() => 0), x.map(() => 0)]
	return [...series, ...sumUp(rest, x)].map((each) => {
		const sides = x.map((_, i) => (each.values[i] < 0 ? down : up))
		const from = sides.map((side, i) => side[i])
		return { ...each, from, to: sides.map((side, i) => (side[i] += each.values[i] || 0)) }
	})
}

// What is not told apart is one piece, or the whole would be too low.
function sumUp(rest, x) {
	const values = x.map((_, i) => total(rest, i))
	return rest[0] ? [{ name: `${rest.length} more`, colour: 'rest', values, raws: values }] : []
}

const total = (series, i) => series.reduce((sum, { values }) => sum + (values[i] || 0), 0)

// --- Scales

const context = document.createElement('canvas').getContext('2d')

function measure(text) {
	context.font = measure.font ??= `11px ${getComputedStyle(document.body).fontFamily}`
	return context.measureText(text).width
}

const between = (a, b, p, q) => (value) => (a === b ? (p + q) / 2 : p + ((value - a) / (b - a)) * (q - p))

function extent(values) {
	const some = values.filter((value) => value != null)
	return some.reduce(([low, high], value) => [min(low, value), max(high, value)], [some[0] ?? 0, some[0] ?? 1])
}

// A line far from zero leaves it out, or its movement would be lost.
function reach(series, fromZero) {
	const [low, high] = extent(series.flatMap(({ to }) => to))
	const near = low === high || (high - low) * 3 > max(-low, high)
	return fromZero || near ? [min(0, low), max(0, high) || +!low] : [low, high]
}

function ticks([low, high], count) {
	const rough = (high - low) / max(1, count)
	const power = 10 ** floor(log10(rough))
	const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999)
	const first = floor(low / step + 1e-9)
	return Array.from({ length: ceil(high / step - 1e-9) - first + 1 }, (_, i) => +((first + i) * step).toPrecision(12))
}

const STEPS = [1, 5, 15, 60, 180, 360, 720, 1440, 2880, 10080, 20160].map((minutes) => minutes * 6e4)
const MONDAY = 4 * DAY // the epoch's first

function timeTicks(low, high, width) {
	const fits = (step) => (high - low) / step <= max(1, width / 60)
	const step = STEPS.find(fits)
	const months = [1, 2, 3, 6, 12, 60, 120].find((n) => fits(n * 30 * DAY)) || 600
	const at = (n) => (step ? MONDAY + n * step : Date.UTC(1970, n * months))
	const name = (p) => (p % DAY ? { timeStyle: 'short' } : { month: 'short', [step ? 'day' : 'year']: 'numeric' })
	const list = []
	for (let n = floor((low - MONDAY) / (step || months * 31 * DAY)); at(n) <= high; n++) list.push(at(n))
	return list.filter((p) => p >= low).map((p) => [p, date(p, name(p))])
}

// --- Places across. Time spans the period that was asked for, and what lies beyond it.

function span(x, { from, to }) {
	const whole = to?.length === 10 && x.some((at) => at % DAY) && DAY // a period's last day counts to its end
	const ends = [x[0], x.at(-1), millis(from), millis(to) + whole].filter(isFinite)
	return [min(...ends), max(...ends)]
}

const gaps = (x) => x.slice(1).map((at, i) => at - x[i]).filter(Boolean).sort((a, b) => a - b)

function acrossTime({ said, options }, isBar, left, right) {
	const [low, high] = span(said.x, options)
	const gap = min(gaps(said.x)[0] ?? DAY, (high - low) / 3 || DAY)
	const pad = isBar ? gap / 2 : 0
	const at = between(low - pad, high + pad, left, right)
	const marks = timeTicks(low, high, right - left).map(([p, name]) => [at(p), name])
	return { at: said.x.map(at), step: isBar ? at(low + gap) - at(low) : 0, marks }
}

// One of how many names has room.
const every = (x, width) => ceil((x.length / width) * max(24, ...x.map((name) => measure(name) + 10)))

function acrossNames({ said: { x } }, isBar, left, right) {
	const step = (right - left) / x.length
	const at = x.map((_, i) => left + (i + 0.5) * step)
	const nth = every(x, right - left)
	return { at, step, marks: x.map((name, i) => [at[i], name]).filter((_, i) => i % nth === 0) }
}

// --- Marks

const path = (points) => points.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join('L')

// The stretches of a series that nothing interrupts: no null, and no step much longer than its others.
function runs(values, { x, timed }) {
	const places = [...values.keys()].filter((i) => values[i] !== undefined)
	const steps = timed ? gaps(places.map((i) => x[i])) : []
	const usual = steps[floor((steps.length - 1) * 0.75)]
	const list = [[]]
	places.forEach((i, n) => {
		if (values[i] == null || x[i] - x[places[n - 1]] > usual * 1.5) list.push([])
		if (values[i] != null) list.at(-1).push(i)
	})
	return list.filter((run) => run.length)
}

// Stacked, they are areas.
function lines({ said, series }, { at }, { y }) {
	return series.flatMap(({ to, from, colour }) => {
		const along = (run, ends) => path(run.map((i) => [at[i], y(ends[i])]))
		const line = (run) => `M${along(run, to)}`
		const area = (run) => `${line(run)}L${along(run.toReversed(), from)}Z`
		const dot = (run) => (run[1] ? '' : `${line(run)}h0`)
		const draw = (kind, mark) => ['path', { class: `${kind} ${colour}`, d: runs(to, said).map(mark).join('') }]
		return [from ? draw('column', area) : draw('line', line), draw('dots', dot)]
	})
}

function bars({ series }, { at, step }, { y }) {
	const whole = clamp(1, step * 0.78, 64)
	const each = series[0]?.from ? whole : whole / series.length
	const width = max(1, each - 1)
	return series.map(({ values, from, to, colour }, n) => {
		const left = (i) => at[i] - whole / 2 + (from ? 0 : n * each)
		const bar = (value, i) => (value ? `M${path([[left(i), y(from ? from[i] : 0)]])}h${width}V${y(to[i])}h${-width}Z` : '')
		return ['path', { class: `column ${colour}`, d: values.map(bar).join('') }]
	})
}

// --- Panels: a chart for each axis, one above the other, over the same times or names

function scale({ series, unit }, fromZero, height, isLast) {
	const [top, bottom] = [10, height - (isLast ? 22 : 8)]
	const levels = ticks(reach(series, fromZero), floor((bottom - top) / 40))
	const y = between(levels[0], levels.at(-1), bottom, top)
	const notation = max(...levels.map(abs)) < 1e4 ? 'standard' : 'compact'
	const names = levels.map((level) => amount(level, signOf(unit), { notation, maximumSignificantDigits: 12 }))
	return { levels, names, y, top, bottom, isLast }
}

function plot(chart) {
	const { box, panels, said, metric: { chart: kind } } = chart
	const svgs = [...box.querySelectorAll('.panels svg')]
	const scales = panels.map((panel, n) => scale(panel, kind !== 'line', svgs[n].clientHeight, !panels[n + 1]))
	const left = max(26, ...scales.flatMap(({ names }) => names.map((name) => measure(name) + 12)))
	const right = max(120, svgs[0].clientWidth) - 26
	const places = { left, right, ...(said.timed ? acrossTime : acrossNames)(chart, kind !== 'line', left, right) }
	const { at } = places
	const isLine = kind === 'line' || (kind === 'stacked' && said.timed && places.step < 9) // no room for bars
	const draw = isLine ? lines : bars
	panels.forEach((panel, n) => patch(svgs[n], drawing(scales[n], places, draw({ ...panel, said }, places, scales[n]))))
	return {
		near: ({ offsetX: x }) => at.reduce((best, each, i) => (abs(each - x) < abs(at[best] - x) ? i : best), 0),
		mark: (i) => panels.forEach(({ series }, n) =>
			patch(svgs[n].lastChild, i == null ? [] : lit(i, places, scales[n], isLine ? series : []))),
	}
}

function drawing({ levels, names, y, bottom, isLast }, { marks, left, right }, shapes) {
	const rule = (level) => ['path', { class: level ? 'rule' : 'base', d: `M${left},${y(level)}H${right}` }]
	const beside = (level, i) => ['text', { class: 'level', x: left - 8, y: y(level) + 4 }, names[i]]
	const under = ([x, name]) => ['text', { class: 'name', x, y: bottom + 17 }, name]
	return [
		['g', {}, levels.map(rule)],
		['g', {}, shapes],
		['g', {}, [...levels.map(beside), ...(isLast ? marks.map(under) : [])]],
		['g', {}],
	]
}

function lit(i, { at, step }, { top, bottom, y }, series) {
	const spots = series.filter(({ values }) => values[i] != null)
	return [['rect', { class: 'lit', x: at[i] - step / 2, y: top, width: max(1, step), height: bottom - top }],
		...spots.map(({ colour, to }) => ['circle', { class: `spot ${colour}`, cx: at[i], cy: y(to[i]), r: 4.5 }])]
}

function summary({ metric: { title, chart }, said: { label, x } }, panels) {
	const range = ({ name, values }, unit) => `${name} from ${extent(values).map((value) => plain(value, unit)).join(' to ')}`
	const ranges = panels.flatMap(({ series, unit }) => series.map((each) => range(each, unit)))
	return sentences([`${title || ''}, ${chart} chart, ${label(0)} to ${label(x.length - 1)}`, ...ranges])
}

function panelsView(chart) {
	const attributes = { role: 'img', 'aria-roledescription': 'chart, arrow keys read its points' }
	const figure = (panel, n) => ['figure', {}, [
		['ul', { class: 'legend' }, legend(chart, panel)],
		['svg', { ...attributes, tabindex: n ? null : 0, 'aria-label': summary(chart, [panel]) }],
	]]
	return [['div', { class: 'panels' }, chart.panels.map(figure)]]
}

// --- Legends

const button = (colour, label, pressed = null) =>
	['button', { type: 'button', class: colour, 'aria-pressed': pressed }, [['i', {}], ['span', {}, label]]]

function opener(chart, list, limit) {
	const rest = list.length - few(chart, list, limit).length
	if (rest) return [button('more plain', `${exact(rest)} more`)]
	return chart.open ? [button('fewer plain', 'Fewer')] : []
}

function legend(chart, { chosen, all, unit }) {
	const toggles = chosen.map(({ name, colour }) => button(colour, name, `${!chart.hidden.has(name)}`))
	const parts = chosen[1] || chart.panels[1] ? [...toggles, ...opener(chart, all, MOST)] : []
	if (captionOf(unit)) parts.push(['span', { class: 'caption' }, captionOf(unit)])
	return parts.map((part) => ['li', {}, [part]])
}

// --- Horizontal bars: the largest first, unless the names have an order of their own

function rowsView(chart) {
	const { panels, said, height } = chart
	const all = [...said.x.keys()]
	if (!said.ordered) all.sort((a, b) => total(panels[0].series, b) - total(panels[0].series, a))
	const fit = max(1, floor(height / 25) - 2) // rows of one bar, beside what else there is
	chart.order = few(chart, all, fit)
	const scales = panels.map(({ series }) => between(...reach(series, true), 0, 100))
	const style = `grid-template-columns: fit-content(55%) repeat(${panels.length}, minmax(36px, 1fr) max-content)`
	const tracks = (i) => panels.flatMap((panel, n) => track(panel, scales[n], i))
	const row = (i) => ['li', {}, [['span', { class: 'label' }, said.label(i)], ...tracks(i)]]
	return [
		['ul', { class: 'legend' }, panels.flatMap((panel) => legend(chart, panel))],
		['ul', { class: 'bars', tabindex: 0, 'aria-label': summary(chart, panels), style }, chart.order.map(row)],
		['p', {}, opener(chart, all, fit)],
	]
}

function track({ series, unit }, at, i) {
	const bar = ({ from, to, colour }) => {
		const [a, b] = [at(from ? from[i] : 0), at(to[i] || 0)]
		return ['i', { class: colour, style: `left: ${min(a, b)}%; width: ${abs(a - b)}%` }]
	}
	const isStacked = series[0]?.from
	const lanes = isStacked ? [series.map(bar)] : series.map((each) => [bar(each)])
	const amounts = isStacked ? [total(series, i)] : series.map(({ raws }) => raws[i])
	return [['span', { class: 'track' }, lanes.map((pieces) => ['span', {}, pieces])],
		['span', { class: 'amounts' }, amounts.map((value) => ['b', {}, plain(value, signOf(unit))])]]
}

function rowsPlan({ box }) {
	const rows = [...box.querySelectorAll('.bars li')]
	return {
		near: ({ target }) => rows.indexOf(target.closest('li')),
		mark: (n) => rows.forEach((row, i) => row.classList.toggle('on', i === n)),
	}
}

// --- Numbers: in time, the newest row is the figure

const newest = (records, time) => records.reduce((a, b) => (time && b[time.name] > a[time.name] ? b : a))

function numberView(chart) {
	const { metric, result: { columns, records }, options: { before } } = chart
	const time = columns.find(isTime)
	const [row, old] = [newest(records, time), before?.records[0] && newest(before.records, time)]
	const at = millis(row[time?.name])
	const since = isFinite(at) ? ` · ${moment(at)}` : ''
	const told = (column) => {
		const [value, unit] = [row[column.name], unitOf(column, metric)]
		return ['div', {}, [
			['dt', {}, words(column.name) + since],
			['dd', {}, figure(chart, value, unit)],
			['dd', { class: 'change' }, change(value, old?.[column.name], unit)],
			['dd', { class: 'spark' }, spark(chart, column)],
		]]
	}
	return [['dl', { tabindex: 0 }, columns.filter(isNumber).map(told)]]
}

// Shrinks to fit by its style, and is shortened before it is too small to be read.
function figure({ width }, value, unit) {
	const sign = signOf(unit)
	const long = plain(value, sign)
	const said = long.length * 10 > width ? amount(value, sign, { notation: 'compact', maximumSignificantDigits: 4 }) : long
	const full = said === exact(value, sign) ? null : exact(value, unit)
	const attributes = { style: `--length: ${said.length}`, tabindex: full && '0', 'data-full': full }
	return [['b', attributes, said], ['small', {}, captionOf(unit)]]
}

function change(now, before, unit) {
	const [a, b] = [number(now), number(before)]
	if (a == null || !b) return '' // of nothing there is no per cent
	const by = amount((a - b) / abs(b), '', { style: 'percent', signDisplay: 'exceptZero', maximumFractionDigits: 1 })
	return `${by} from ${plain(before, signOf(unit))} before`
}

function spark({ result, options }, column) {
	const said = read(result, 'line')
	if (!said?.timed || !said.x[1]) return []
	const series = said.series.filter((each) => each.column === column).map((each) => ({ ...each, colour: 'c0' }))
	const [at, y] = [between(...span(said.x, options), 1, 99), between(...reach(series), 29, 3)]
	const line = lines({ said, series }, { at: said.x.map(at) }, { y })
	return [['svg', { viewBox: '0 0 100 32', preserveAspectRatio: 'none', 'aria-hidden': 'true' }, line]]
}

// --- Tables

function tableView(chart) {
	const { columns, records } = chart.result
	const head = columns.map(({ name, type }) => ['th', { class: type, scope: 'col' }, words(name)])
	const line = (row) => ['tr', {}, columns.map((column) =>
		['td', { class: column.type, dir: 'auto' }, cell(row[column.name], column)])]
	return [['div', { class: 'rows', role: 'group', 'aria-label': 'Result', tabindex: 0 }, [
		['table', {}, [['thead', {}, [['tr', {}, head]]], ['tbody', {}, few(chart, records, ROWS).map(line)]]],
		['p', {}, opener(chart, records, ROWS)]]]]
}

// --- Drawing into a box

const charts = new WeakMap()
const kinds = { panels: [panelsView, plot], rows: [rowsView, rowsPlan], number: [numberView], table: [tableView] }
const sizes = new ResizeObserver((entries) => {
	for (const { target, contentRect: { width, height } } of entries) render(assign(charts.get(target), { width, height }))
})

export function draw(box, metric, result, options = {}) {
	const chart = charts.get(box) || adopt(box)
	render(assign(chart, { metric, result, options }))
}

function adopt(box) {
	const chart = { box, hidden: new Set(), open: 0 }
	charts.set(box, chart)
	box.classList.add('drawn')
	for (const type in heard) box.addEventListener(type, (event) => heard[type](event, chart))
	sizes.observe(box)
	return chart
}

function render(chart) {
	if (!chart.width || !chart.height) return
	const { box, result: { records, truncated } } = chart
	const [was, { kind, said }] = [chart.kind, assign(chart, prepare(chart))]
	if (kind !== was) box.replaceChildren()
	const notes = [!records[0] && 'No rows', truncated && `The first ${exact(records.length)} rows, there are more`,
		said?.dropped && `${exact(said.dropped)} rows without a time are not drawn`]
	const [view, planOf] = kinds[kind]
	const last = [['p', { class: 'note' }, sentences(notes)], ['p', { class: 'unseen', 'aria-live': 'polite' }]]
	patch(box, [...(records[0] ? view(chart) : []), ...last])
	chart.plan = planOf?.(chart)
	if (pointed === chart) chart.point < chart.order.length ? point(chart, chart.point) : unpoint()
}

function prepare(chart) {
	const { metric: { chart: kind }, result, width } = chart
	const said = /line|bar|stacked/.test(kind) ? read(result, kind) : null
	if (!said) return { said, order: [], kind: kind === 'number' && !result.columns.some(isText) ? 'number' : 'table' }
	const isFull = !said.ordered && every(said.x, width - 60) > 1
	const isRows = kind === 'hbar' || (kind !== 'line' && isFull)
	return { said, panels: panelsOf({ ...chart, said }), order: [...said.x.keys()], kind: isRows ? 'rows' : 'panels' }
}

// --- Tooltips: the same for mouse, touch and keys

const tip = assign(document.createElement('div'), { className: 'tip', popover: 'manual', ariaHidden: 'true' })
document.body.append(tip)
let pointed

export function unpoint() {
	if (!pointed) return
	pointed.plan?.mark()
	pointed = pointed.point = null
	tip.hidePopover()
}

// Rows of one time are told together.
function entries({ panels, said: { x } }, i) {
	const together = [...x.keys()].filter((other) => x[other] === x[i])
	return panels.flatMap(({ series, unit }) => {
		const list = series.flatMap(({ name, colour, raws }) => together.filter((each) => raws[each] !== undefined)
			.map((each) => ({ name, colour, value: exact(raws[each], unit) })))
		return series[1]?.from ? [...list, { name: 'Total', value: plain(total(series, i), unit) }] : list
	})
}

function point(chart, n) {
	if (pointed !== chart) unpoint()
	pointed = assign(chart, { point: n })
	const { plan, said, order } = chart
	const all = entries(chart, order[n])
	const list = few({ open: 0 }, all, 20)
	if (list.length < all.length) list.push({ name: `${all.length - list.length} more`, value: '' })
	const title = said.label(order[n])
	const line = ({ name, colour, value }) => ['p', {}, [['i', { class: colour }], ['span', {}, name], ['em', {}, value]]]
	plan.mark(n)
	tell([['b', {}, title], ...list.map(line)], chart.box.querySelector('.lit, .on .label'))
	return `${title}: ${list.map(({ name, value }) => `${name} ${value}`).join(', ') || 'no value'}`
}

// Beside what it is about, where there is room.
function tell(view, node) {
	patch(tip, view)
	tip.showPopover()
	const { offsetWidth: width, offsetHeight: height } = tip
	const { left, right, top } = node.getBoundingClientRect()
	const x = right + 14 + width > innerWidth ? left - 14 - width : right + 14
	const inside = (at, size, room) => `${clamp(8, at, room - size - 8)}px`
	assign(tip.style, { left: inside(x, width, innerWidth), top: inside(top, height, innerHeight) })
}

// A label that is cut or a figure that is rounded, in full.
function tellAll(node) {
	const said = node.querySelector('span') || node
	if (!node.dataset.full && said.scrollWidth <= said.clientWidth) return
	unpoint()
	pointed = {}
	tell([['b', {}, node.dataset.full || said.textContent]], node)
}

function over(event, chart) {
	const named = event.target.closest('[data-full], .legend button')
	if (named) return tellAll(named)
	const n = chart.plan && event.target.closest('svg, .bars') ? chart.plan.near(event) : -1
	if (n < 0) unpoint()
	else if (pointed !== chart || n !== chart.point) point(chart, n)
}

function keyed(event, chart) {
	if (!chart.plan || !event.target.matches('svg, .bars')) return
	const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -Infinity, End: Infinity }[event.key]
	if (!step) return
	const last = chart.order.length - 1
	const from = pointed === chart ? chart.point : step > 0 ? -1 : last + 1
	event.preventDefault()
	write(chart.box.lastElementChild, point(chart, clamp(0, from + step, last)))
	chart.box.querySelector('.lit, .on').scrollIntoView({ block: 'nearest' })
}

function clicked({ target }, chart) {
	const button = target.closest('button')
	if (!button) return
	const [{ hidden }, name] = [chart, button.textContent]
	if (button.matches('.more')) chart.open++
	else if (button.matches('.fewer')) chart.open = 0
	else if (!hidden.delete(name)) hidden.add(name)
	render(chart)
}

const heard = {
	pointermove: over,
	pointerdown: over,
	pointerleave: ({ pointerType }) => pointerType === 'touch' || unpoint(),
	keydown: keyed,
	focusin: (event, chart) => event.target.matches('svg, .bars') || over(event, chart),
	focusout: ({ relatedTarget }, { box }) => (pointed?.box && box.contains(relatedTarget)) || unpoint(),
	click: clicked,
}
addEventListener('keydown', ({ key }) => key === 'Escape' && unpoint(), true)
addEventListener('scroll', () => pointed?.plan && point(pointed, pointed.point), true)
addEventListener('pointerdown', ({ target }) => pointed?.box?.contains(target) || unpoint(), true)
