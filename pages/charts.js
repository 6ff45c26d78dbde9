// Draws what a metric answers as a chart, a number or a table, in any page:
//
//   <link rel="stylesheet" href="https://metrics.example/pages/charts.css">
//   <div id="cost" style="height: 260px"></div>
//   <script type="module">
//     import { draw, parse } from 'https://metrics.example/pages/charts.js'
//     const answer = await fetch('https://metrics.example/metrics/cost-avoided?start_date=2025-06-01&end_date=2025-06-30')
//     const metric = { title: 'Cost avoided', unit: 'USD', chart: 'line' }
//     draw(document.getElementById('cost'), metric, parse(await answer.text()), { from: '2025-06-01', to: '2025-06-30' })
//   </script>
//
// draw(box, metric, result, options) draws into a box that has a height, again when its size changes; called again it
// moves what is there. The chart is number, line, bar, stacked, hbar or table; what it cannot draw becomes a table. The
// result is the service's answer, of which parse keeps all digits. Options: from and to, the period that was asked for
// (ISO 8601), which time axes span; before, the result of the period before, with which a number is compared.

const { abs, ceil, floor, log10, max, min } = Math
const { assign } = Object
const clamp = (low, value, high) => max(low, min(value, high))

// --- Elements: a view is [tag, attributes, text or views; left alone if undefined]. Patched in place, nodes keep
// focus and move by CSS transitions. Data become text and attributes, never markup.

const SVG = 'http://www.w3.org/2000/svg'

export function patch(parent, views) {
	views.forEach(([tag, attributes, content], i) => {
		let node = parent.children[i]
		if (node?.localName !== tag) node = parent.insertBefore(document.createElementNS(tag === 'svg' ? SVG : parent.namespaceURI, tag), node)
		for (const name in attributes) set(node, name, attributes[name])
		if (content?.map) patch(node, content)
		else if (content !== undefined) write(node, content)
	})
	while (parent.children.length > views.length) parent.lastElementChild.remove()
}

function set(node, name, value) {
	if (name === 'style') node.style.cssText = value // as a strict policy wants it
	else if (value == null || value === false) node.removeAttribute(name)
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

const known = (kind) => new Set(Intl.supportedValuesOf?.(kind))
const [CURRENCIES, UNITS] = [known('currency'), known('unit')]
const SIGNS = { '€': 'EUR', '$': 'USD', '£': 'GBP', '¥': 'JPY' }
const SHORT = { '%': 'percent', percent: 'percent', ms: 'millisecond', s: 'second', min: 'minute', h: 'hour', '°C': 'celsius',
	kg: 'kilogram', km: 'kilometer', kB: 'kilobyte', MB: 'megabyte', GB: 'gigabyte', TB: 'terabyte' }

// How the browser's language writes a unit, where it knows it.
function styleOf(unit) {
	if (SIGNS[unit]) return { style: 'currency', currency: SIGNS[unit], currencyDisplay: 'narrowSymbol' }
	if (CURRENCIES.has(unit)) return { style: 'currency', currency: unit }
	if (SHORT[unit]) return { style: 'unit', unit: SHORT[unit] }
	const long = unit?.replace(/s$/, '')
	return UNITS.has(long) ? { style: 'unit', unit: long, unitDisplay: 'long' } : {}
}

// A unit stands at each number where the language has a sign for it, else once beside them.
const signOf = (unit) => (styleOf(unit).style ? unit : '')
const captionOf = (unit) => (styleOf(unit).style ? '' : unit || '')

function amount(value, unit, options) {
	const style = styleOf(unit)
	const said = format(value, { ...options, ...style })
	return style.style || !unit ? said : `${said}\u00a0${unit}`
}

function exact(value, unit) {
	const [all, { length } = ''] = /^-?\d+(?:\.(\d{1,100}))?$/.exec(value) || []
	if (all) return amount(all, unit, { minimumFractionDigits: length, maximumFractionDigits: length })
	const isPower = /\de/i.test(value) && isFinite(value)
	return isPower ? amount(value, unit, { notation: 'scientific', maximumSignificantDigits: 17 }) : String(value ?? '–')
}

// Rounded, but not to all or nothing: 99.987 % is not 99.99 %, and 0.00012 is not 0.
function plain(value, unit) {
	const size = abs(value)
	const [, { length } = ''] = /\.(\d+)$/.exec(value) || []
	if (value == null || !isFinite(size) || length <= 3 || size >= 2 ** 53) return exact(value, unit)
	if (size && size < 0.01) return amount(value, unit, { maximumSignificantDigits: 3 })
	const left = (size < 1 ? 1 : 100) - size
	const near = left > 0 && left < (size < 1 ? 0.01 : 1) ? ceil(-log10(left)) + 1 : 0
	return amount(value, unit, { minimumFractionDigits: 0, maximumFractionDigits: max(near, size < 1 ? 4 : 2) })
}

// --- Dates. The service's sessions are in UTC, and so is the page.

const DAY = 864e5
const millis = (text) => Date.parse(/T[\d:.]*$/.test(text) ? `${text}Z` : text)
const date = (at, options) => format(at, { timeZone: 'UTC', ...options }, Intl.DateTimeFormat)
const moment = (at) => date(at, { dateStyle: 'medium', ...(at % DAY && { timeStyle: at % 6e4 ? 'medium' : 'short' }) })

// --- Columns

const isNumber = ({ type }) => /^(int[248]|numeric|float[48])$/.test(type)
const isTime = ({ type }) => /^(date|timestamp(tz)?)$/.test(type)
const isText = (column) => !isNumber(column) && !isTime(column)
export const words = (name) => name.replaceAll('_', ' ')
const number = (value) => (value == null || !isFinite(value) ? null : +value)

function cell(value, column) {
	if (value == null || isNumber(column)) return exact(value)
	if (isTime(column)) return value.replace('T', ' ').replace(/\.\d+/, '').replace('+00:00', '')
	return typeof value === 'object' ? JSON.stringify(value) : String(value)
}

const NAMED = /(?:^|_)(pct|percent|percentage|eur|usd|gbp|chf|ms|seconds?|minutes?|hours?|days?|kg|km|[kmgt]b|bytes?)$/i
const RATIO = /(?:^|_)(share|rate|ratio)$/i

// One unit is the metric's, unless a column's name says that it has another.
function unitOf({ name }, { unit }, numbers) {
	const [, own] = NAMED.exec(name) || []
	if (unit && (!numbers[1] || unit === '%' || !(own || RATIO.test(name)))) return unit
	return !own ? '' : /^p/i.test(own) ? '%' : /^(eur|usd|gbp|chf)$/i.test(own) ? own.toUpperCase() : own
}

const stem = ({ name }) => name.replace(/(^|_)(min|max|avg|mean|median|p\d+|lowest|highest|average)(?=_|$)/g, '')

// What may be compared on one axis: a unit; without one the ends and the middle of the same thing, counts, or fractions.
function quantity(column, metric, numbers, records) {
	const unit = unitOf(column, metric, numbers)
	if (unit || RATIO.test(column.name)) return unit || 'ratio'
	const of = stem(column)
	if (numbers.some((other) => other !== column && stem(other) === of)) return `of ${of}`
	return records.every((row) => number(row[column.name]) % 1 === 0) ? 'whole' : 'fraction'
}

// The columns that share an axis: of one quantity, and none so small beside the largest that it would lie flat.
function axes(numbers, metric, records, isStacked) {
	const tops = new Map(numbers.map((column) => [column, records.reduce((top, row) => max(top, abs(number(row[column.name]))), 0)]))
	const groups = []
	for (const column of [...numbers].sort((a, b) => tops.get(b) - tops.get(a))) {
		const [kind, top] = [quantity(column, metric, numbers, records), tops.get(column)]
		const group = groups.find((each) => each.kind === kind && (isStacked || !top || each.top / top <= 50))
		if (group) group.columns.push(column)
		else groups.push({ kind, top, unit: unitOf(column, metric, numbers), columns: [column] })
	}
	const place = ({ columns }) => min(...columns.map((column) => numbers.indexOf(column)))
	return groups.sort((a, b) => place(a) - place(b))
}

// --- What a result says: {x, label(i), timed, ordered, loose, dropped, series: [{name, column, points: [[i, row]], size}]}

function read({ columns, records }, chart) {
	const [[time], numbers, texts] = [isTime, isNumber, isText].map((test) => columns.filter(test))
	const ordered = !time && !texts[0] // years, hours: numbers that have an order of their own
	if (ordered) texts.push(...numbers.splice(0, 1))
	if (!numbers[0]) return null
	const split = time ? texts : chart === 'stacked' ? texts.slice(1) : [] // a series for each
	const placed = place(time, texts, split, records)
	const { rows, unique } = time || placed.unique ? placed : place(time, texts, [], records)
	return rows[0] ? assemble({ rows, numbers, time, ordered, unique, dropped: records.length - rows.length }) : null
}

function place(time, texts, split, records) {
	const join = (row, list) => list.map((column) => cell(row[column.name], column)).join(' · ')
	const heads = texts.filter((column) => !split.includes(column))
	const all = records.map((row) => [time ? millis(row[time.name]) : join(row, heads), join(row, split), row])
	const rows = time ? all.filter(([at]) => isFinite(at)).sort(([a], [b]) => a - b) : all
	return { rows, unique: new Set(rows.map(([at, name]) => `${at}\n${name}`)).size === rows.length }
}

// Rows that repeat a time within a series are events: loose, each with a place of its own.
function assemble({ rows, numbers, time, ordered, unique, dropped }) {
	const all = rows.map(([at]) => at)
	const x = unique ? [...new Set(all)] : all
	const slots = new Map(x.map((at, i) => [at, i]))
	const named = new Map(rows.map(([, name]) => [name, []]))
	rows.forEach(([at, name, row], i) => named.get(name).push([unique ? slots.get(at) : i, row]))
	const sum = (points, column) => points.reduce((total, [, row]) => total + abs(number(row[column.name])), 0)
	const series = [...named].flatMap(([name, points]) => numbers.map((column) => ({
		name: [name, (!name || numbers[1]) && words(column.name)].filter(Boolean).join(' · '), column, points, size: sum(points, column) })))
	return { x, series, ordered, dropped, timed: !!time, isDate: time?.type === 'date', loose: !!time && !unique,
		label: (i) => (time ? moment(x[i]) : x[i]) }
}

// The values of a series where it has rows, and what they were before they became doubles.
function fill(series, length) {
	const [values, raws] = [Array(length).fill(null), Array(length)]
	for (const [i, row] of series.points) [values[i], raws[i]] = [number(row[series.column.name]), row[series.column.name] ?? null]
	return { ...series, values, raws }
}

// --- Which series are drawn: as many as can be told apart, the largest, and the rest on demand

const MOST = 8 // series
const ROWS = 200 // at a time

function largestFirst(all) {
	if (all.length <= MOST + 2) return all
	const largest = new Set([...all].sort((a, b) => b.size - a.size).slice(0, MOST))
	return [...all.filter((each) => largest.has(each)), ...all.filter((each) => !largest.has(each))]
}

function sumUp(rest, length) {
	const values = Array(length).fill(0)
	for (const { points, column } of rest) for (const [i, row] of points) values[i] += number(row[column.name])
	return { name: `${rest.length} more`, colour: 'rest', values, raws: values }
}

function stack(series, length) {
	const [up, down] = [Array(length).fill(0), Array(length).fill(0)]
	return series.map((each) => ({ ...each, from: each.values.map((value, i) => {
		const side = value < 0 ? down : up
		side[i] += value
		return side[i] - value
	}) }))
}

function panelsOf({ said, metric, result: { columns, records }, hidden, limit }) {
	const numbers = columns.filter((column) => said.series.some((each) => each.column === column))
	const isStacked = metric.chart === 'stacked'
	let colours = 0
	return axes(numbers, metric, records, isStacked).map(({ unit, columns: own }) => {
		const all = largestFirst(said.series.filter(({ column }) => own.includes(column)))
			.map((each, n) => ({ ...each, colour: `c${(colours + n) % MOST} d${floor((colours + n) / MOST) % 3}` }))
		const [chosen, rest] = all.length > limit + 2 ? [all.slice(0, limit), all.slice(limit)] : [all, []]
		const series = chosen.filter(({ name }) => !hidden.has(name)).map((each) => fill(each, said.x.length))
		if (isStacked && rest[0]) series.push(sumUp(rest, said.x.length))
		colours += min(all.length, MOST)
		return { unit, chosen, rest, series: isStacked ? stack(series, said.x.length) : series }
	})
}

// --- Texts that fit

const context = document.createElement('canvas').getContext('2d')

function measure(text, size = 11, weight = 400) {
	context.font = `${weight} ${size}px ${measure.family ??= getComputedStyle(document.body).fontFamily}`
	return context.measureText(text).width
}

function clip(text, room) {
	if (measure(text) <= room) return text
	const letters = [...text]
	while (letters[0] && measure(`${letters.join('')}…`) > room) letters.pop()
	return `${letters.join('')}…`
}

// --- Scales

const between = (a, b, p, q) => (value) => (a === b ? (p + q) / 2 : p + ((value - a) / (b - a)) * (q - p))

function extent(values) {
	const some = values.filter((value) => value != null)
	return some.reduce(([low, high], value) => [min(low, value), max(high, value)], [some[0] ?? 0, some[0] ?? 1])
}

// A line far from zero leaves it out, or its movement would be lost.
function reach(values, fromZero) {
	const [low, high] = extent(values)
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

// With as many digits as tell one from the next.
function levelNames(levels, unit) {
	const [top, step] = [max(...levels.map(abs)), (levels[1] - levels[0]) * 1.001]
	const [places, digits] = [max(0, -floor(log10(step))), floor(log10(top)) - floor(log10(step)) + 1]
	const options = top >= 1e4 || top < 1e-4 ? { notation: top < 1 ? 'scientific' : 'compact', maximumSignificantDigits: clamp(1, digits, 15) }
		: { minimumFractionDigits: places, maximumFractionDigits: places }
	return levels.map((level) => amount(level, signOf(unit), options))
}

function timeTicks(low, high, width) {
	const fits = (step, room) => ((high - low) / step) * room <= max(room, width)
	const steps = [1, 5, 15, 60, 180, 360, 720, 1440, 2880, 10080, 20160].map((minutes) => minutes * 6e4)
	const step = steps.find((each) => fits(each, each < DAY ? 66 : 54))
	const months = [1, 2, 3, 6, 12, 60, 120].find((n) => fits(n * 30 * DAY, 44)) || 600
	const at = (n) => (step ? n * step + 4 * DAY : Date.UTC(1970, n * months)) // the epoch's first Monday
	const list = []
	for (let n = floor((low - 4 * DAY) / (step || months * 31 * DAY)); at(n) <= high; n++) if (at(n) >= low) list.push(at(n))
	return list.map((p, i) => [p, step ? dayName(p) : monthName(p, !i)])
}

const dayName = (p) => date(p, p % DAY ? { timeStyle: 'short' } : { month: 'short', day: 'numeric' })
const monthName = (p, isFirst) => date(p, { month: 'short', ...((isFirst || !new Date(p).getUTCMonth()) && { year: 'numeric' }) })

// --- Places across. Time spans the period that was asked for, and what lies beyond it.

function span({ x, isDate }, { from, to }) {
	const whole = !isDate && /^\d+-\d\d-\d\d$/.test(to) ? DAY : 0 // a period's last day counts to its end
	const ends = [x[0], x.at(-1), millis(from), millis(to) + whole].filter(isFinite)
	return [min(...ends), max(...ends)]
}

const gaps = (x) => x.slice(1).map((at, i) => at - x[i]).filter(Boolean).sort((a, b) => a - b)

// More than this between two values is a gap: one and a half times the usual step.
function reachOf(x) {
	const steps = gaps(x)
	const middle = steps[steps.length >> 1]
	const isRegular = steps.filter((step) => abs(step - middle) < middle / 5).length * 2 > steps.length
	return 1.5 * (isRegular ? middle : steps[floor(steps.length * 0.9)])
}

function across(chart, isBar, left, right) {
	return chart.said.timed ? acrossTime(chart, isBar, left, right) : acrossNames(chart.said, left, right)
}

function acrossTime({ said, options }, isBar, left, right) {
	const [low, high] = span(said, options)
	const gap = min(gaps(said.x)[0] ?? DAY, (high - low) / 3 || DAY)
	const pad = isBar ? gap / 2 : 0
	const at = between(low - pad, high + pad, left, right)
	const marks = timeTicks(low, high, right - left).map(([p, name]) => [at(p), name])
	return { at: said.x.map(at), step: isBar ? at(low + gap) - at(low) : 0, marks }
}

function acrossNames({ x }, left, right) {
	const step = (right - left) / x.length
	const every = ceil(46 / step)
	const at = x.map((_, i) => left + (i + 0.5) * step)
	const marks = x.map((name, i) => [at[i], name]).filter((_, i) => i % every === 0)
	return { at, step, marks: marks.map(([p, name]) => [p, clip(name, step * every - 6)]) }
}

// Where bars would stand as close as a line's points, their stack is an area.
function isDense({ x, timed }, panels, width) {
	const isUp = panels.every(({ series }) => series.every(({ values }) => values.every((value) => value >= 0)))
	return timed && isUp && (width / (x.at(-1) - x[0])) * gaps(x)[0] < 9
}

const hasRoom = ({ x }, width) => x.length * 24 < width && x.length * max(...x.map((name) => measure(name) + 10)) < width - 60

// --- Marks

const path = (points) => `M${points.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join('L')}`

// The stretches of a series that nothing interrupts.
function runs({ values, raws }, { x, timed, loose }) {
	const slots = [...raws.keys()].filter((i) => raws[i] !== undefined)
	const most = timed ? reachOf(slots.map((i) => x[i])) : Infinity
	const list = []
	let last
	for (const i of slots) {
		if (values[i] != null && (last === undefined || loose || x[i] - x[last] > most)) list.push([])
		if (values[i] != null) list.at(-1).push(i)
		last = values[i] == null ? undefined : i
	}
	return list
}

function lines({ said, series }, { at }, { y, base }) {
	return series.flatMap((each) => {
		const stretches = runs(each, said).map((run) => run.map((i) => [at[i], y(each.values[i])]))
		const [long, lone] = [stretches.filter((run) => run[1]), stretches.filter((run) => !run[1])]
		const area = !series[1] && y(0) <= base && long.map((run) => `${path(run)}L${run.at(-1)[0]},${base}L${run[0][0]},${base}Z`).join('')
		return [['path', { class: `area ${each.colour}`, d: area || '' }], ['path', { class: `line ${each.colour}`, d: long.map(path).join('') }],
			['path', { class: `dots ${each.colour}`, d: lone.map((run) => `${path(run)}h0`).join('') }]]
	})
}

// One rectangle after the other, as one path.
const block = (x, y, width, height) => `M${x.toFixed(1)},${y.toFixed(1)}h${width.toFixed(1)}v${height.toFixed(1)}h${(-width).toFixed(1)}Z`

const sides = ({ from, values }, i, at) => [at(from?.[i] ?? 0), at((from?.[i] ?? 0) + values[i])].sort((a, b) => a - b)

function bars({ series }, { at, step }, { y }) {
	const whole = clamp(1, step * 0.78, 64)
	const width = series[0]?.from ? whole : whole / series.length
	const bar = (each, n) => (value, i) => {
		const [top, bottom] = sides(each, i, y)
		return value == null ? '' : block(at[i] - whole / 2 + (each.from ? 0 : n * width), top, max(1, width - 1), max(bottom - top, value ? 1 : 0))
	}
	return series.map((each, n) => ['path', { class: `column ${each.colour}`, d: each.values.map(bar(each, n)).join('') }])
}

function areas({ said, series }, { at }, { y }) {
	const stretches = runs({ values: said.x.map(() => 0), raws: said.x }, said)
	const wide = (run) => (run[1] ? run.map((i) => [i, at[i]]) : [[run[0], at[run[0]] - 2], [run[0], at[run[0]] + 2]])
	return series.map(({ values, from, colour }) => ['path', { class: `column ${colour}`, d: stretches.map(wide).map((run) => {
		const top = run.map(([i, p]) => [p, y(from[i] + values[i])])
		return `${path([...top, ...run.map(([i, p]) => [p, y(from[i])]).reverse()])}Z`
	}).join('') }])
}

// --- Panels: a chart for each axis, one above the other, over the same times or names

const text = (x, y, kind, content) => ['text', { x, y, class: kind }, content]
const ends = ({ values, from }) => (from ? values.map((value, i) => from[i] + value) : values)

function scale({ series, unit }, fromZero, height, isNamed) {
	const caption = captionOf(unit)
	const [top, bottom] = [caption ? 22 : 10, height - (isNamed ? 22 : 8)]
	const levels = ticks(reach(series.flatMap(ends), fromZero), floor((bottom - top) / 40))
	const y = between(levels[0], levels.at(-1), bottom, top)
	return { levels, names: levelNames(levels, unit), caption, y, top, bottom, isNamed, base: y(clamp(levels[0], 0, levels.at(-1))) }
}

function plot(chart, sizes) {
	const { panels, said, metric } = chart
	const isLine = metric.chart === 'line'
	const scales = panels.map((panel, n) => scale(panel, !isLine, max(50, sizes[n].height), sizes[n].height > 120 || !panels[n + 1]))
	const left = 12 + max(...scales.flatMap(({ names }) => names.map((name) => measure(name))))
	const right = max(120, sizes[0].width) - 12
	const isArea = metric.chart === 'stacked' && isDense(said, panels, right - left)
	const places = { ...across(chart, !isLine && !isArea, left, right), left, right }
	const marks = isArea ? areas : isLine ? lines : bars
	const svgs = [...chart.box.querySelectorAll('.panels svg')]
	panels.forEach((panel, n) => patch(svgs[n], drawing(scales[n], places, marks({ ...panel, said }, places, scales[n]))))
	const near = isLine || isArea ? spots : lit
	chart.plan = {
		count: said.x.length,
		slot: (i) => i,
		near: ({ offsetX }) => nearest(places.at, offsetX),
		mark: (i) => panels.forEach((panel, n) => patch(svgs[n].lastChild, i == null ? [] : near(i, places, scales[n], panel))),
		place(i) {
			const { left: edge, top, bottom } = svgs[0].getBoundingClientRect()
			return { x: edge + places.at[i], top, bottom }
		},
	}
}

function drawing({ levels, names, caption, y, bottom, isNamed }, { marks, left, right }, shapes) {
	const rule = (level) => ['path', { class: level ? 'rule' : 'base', d: `M${left},${y(level)}H${right}` }]
	const under = ([p, name]) => text(clamp(measure(name) / 2, p, right + 12 - measure(name) / 2), bottom + 17, 'name', name)
	return [
		['g', {}, levels.map(rule)],
		['g', {}, shapes],
		['g', {}, [text(2, 11, 'unit', caption), ...levels.map((level, i) => text(left - 8, y(level) + 4, 'level', names[i])),
			...(isNamed ? marks.map(under) : [])]],
		['g', {}],
	]
}

function lit(i, { at, step }, { top, bottom }) {
	return [['rect', { class: 'lit', x: at[i] - step / 2, y: top, width: max(1, step), height: bottom - top }]]
}

function spots(i, places, scale, { series }) {
	const dots = series.filter(({ values }) => values[i] != null)
	return [...lit(i, places, scale), ...dots.map((each) => ['circle', { class: `spot ${each.colour}`, cx: places.at[i], cy: scale.y(ends(each)[i]), r: 4.5 }])]
}

const nearest = (at, p) => at.reduce((best, each, i) => (abs(each - p) < abs(at[best] - p) ? i : best), 0)

function summary({ metric: { title, chart }, said: { label, x } }, panels) {
	const range = (unit) => ({ name, values }) => `${name} from ${extent(values).map((value) => plain(value, unit)).join(' to ')}`
	const ranges = panels.flatMap(({ series, unit }) => series.map(range(unit)))
	const rest = ranges[12] && `And ${ranges.length - 12} more`
	return sentences([`${title || ''}, ${chart} chart, ${label(0)} to ${label(x.length - 1)}`, ...ranges.slice(0, 12), rest])
}

function panelsView(chart) {
	const figure = (panel, n) => ['figure', {}, [
		['ul', { class: 'legend' }, legend(chart, panel)],
		['svg', { role: 'img', tabindex: n ? null : 0, 'aria-roledescription': 'chart, arrow keys read its points', 'aria-label': summary(chart, [panel]) }],
	]]
	return [['div', { class: 'panels' }, chart.panels.map(figure)]]
}

// --- Legends

function button(act, colour, label, more) {
	const attributes = { type: 'button', 'data-act': act, 'data-name': null, 'aria-pressed': null, class: colour, ...more }
	return ['button', attributes, [['i', {}], ['span', { dir: 'auto' }, label]]]
}

function legend({ panels, hidden, metric, limit }, { chosen, rest }) {
	if (!chosen[1] && !panels[1]) return []
	const toggle = ({ name, colour }) => button('toggle', colour, name, { 'data-name': name, 'aria-pressed': String(!hidden.has(name)) })
	const more = rest[0] && button('more', metric.chart === 'stacked' ? 'rest' : 'plain', `${rest.length} more`)
	const fewer = limit > MOST && chosen[MOST + 2] && button('fewer', 'plain', 'Fewer')
	return [...chosen.map(toggle), more, fewer].filter(Boolean).map((each) => ['li', {}, [each]])
}

// --- Horizontal bars: the largest first, unless the names have an order of their own

function rowsView(chart) {
	const { panels, said, height, open } = chart
	const order = [...said.x.keys()]
	if (!said.timed && !said.ordered) order.sort((a, b) => sumAt(panels[0], b) - sumAt(panels[0], a))
	const lanes = max(1, ...panels.map(({ series }) => (series[0]?.from ? 1 : series.length)))
	const legends = panels.flatMap((panel) => legend(chart, panel))
	const captions = panels.map(({ unit }) => captionOf(unit)).filter(Boolean).join(', ')
	const fit = (taken) => max(1, floor((height - taken - (legends[0] ? 26 : 0) - (captions ? 16 : 0)) / (10 + 15 * lanes)))
	const isAll = order.length <= fit(4)
	chart.order = isAll ? order : order.slice(0, open || fit(34))
	const scales = panels.map(({ series }) => reach(series.flatMap(ends), true)).map(([low, high]) => between(low, high, 0, 100))
	const style = `grid-template-columns: fit-content(55%) ${panels.map(() => 'minmax(36px, 1fr) max-content').join(' ')}`
	const tracks = (i) => panels.flatMap((panel, n) => track(panel, scales[n], i))
	const row = (i, n) => ['li', { 'data-n': n }, [['span', { class: 'label', dir: 'auto' }, said.label(i)], ...tracks(i)]]
	return [
		['ul', { class: 'legend' }, legends],
		['p', { class: 'caption' }, captions],
		['ul', { class: 'bars', tabindex: 0, 'aria-label': summary(chart, panels), style }, chart.order.map(row)],
		more(order.length - chart.order.length, !isAll && 'Fewer'),
	]
}

const sumAt = ({ series }, i) => series.reduce((sum, { values }) => sum + values[i], 0)

function track({ series, unit }, at, i) {
	const bar = (each) => {
		const [left, right] = sides(each, i, at)
		return ['i', { class: each.colour, style: `left: ${left}%; width: ${right - left}%; min-width: ${right > left ? 1 : 0}px` }]
	}
	const isStacked = series[0]?.from
	const lanes = isStacked ? [series.map(bar)] : series.map((each) => [bar(each)])
	const amounts = isStacked ? [sumAt({ series }, i)] : series.map(({ raws }) => raws[i])
	const zero = ['s', { style: `left: ${at(0)}%` }]
	return [['span', { class: 'track' }, lanes.map((pieces) => ['span', {}, at(0) > 0 ? [...pieces, zero] : pieces])],
		['span', { class: 'amounts' }, amounts.map((value) => ['b', {}, plain(value, signOf(unit))])]]
}

function more(rest, fewer) {
	const [act, label] = rest > 0 ? ['rows', `${exact(rest)} more`] : ['close', fewer]
	return ['p', {}, label ? [button(act, 'plain', label)] : []]
}

function planRows(chart) {
	const rows = [...chart.box.querySelectorAll('.bars li')]
	chart.plan = {
		count: rows.length,
		slot: (n) => chart.order[n],
		near: ({ target }) => +(target.closest('li')?.dataset.n ?? -1),
		mark: (n) => rows.forEach((row, i) => row.classList.toggle('on', i === n)),
		place: (n) => below(rows[n], 20),
	}
}

// --- Numbers: in time, the newest row is the figure

const newest = ({ records }, time) => (time ? records.reduce((a, b) => (millis(b[time.name]) > millis(a[time.name]) ? b : a)) : records[0])

function numberView(chart) {
	const { metric, result, options: { before }, height } = chart
	const [time, numbers] = [result.columns.find(isTime), result.columns.filter(isNumber)]
	const [row, old] = [newest(result, time), before?.records[0] && newest(before, time)]
	const parts = (column) => {
		const [value, unit] = [row[column.name], unitOf(column, metric, numbers)]
		if (!isNumber(column)) return [[['span', { dir: 'auto' }, cell(value, column)]], [], []]
		const line = height > 100 ? spark(chart, column) : []
		return [figure(chart, value, unit, numbers.length), old ? change(value, old[column.name], unit) : [], line]
	}
	const shown = numbers[0] ? result.columns.filter((column) => column !== time) : result.columns
	const since = time && numbers[0] && row[time.name] ? ` · ${moment(millis(row[time.name]))}` : ''
	const kinds = ['', 'change', 'spark']
	return [['dl', { tabindex: 0 }, shown.map((column) => ['div', {}, [['dt', {}, words(column.name) + (isNumber(column) ? since : '')],
		...parts(column).map((part, n) => ['dd', { class: kinds[n] }, part])]])]]
}

// Shrinks until it fits, and is shortened when that is too small to be read.
function figure({ width, height }, value, unit, count) {
	const [sign, caption] = [signOf(unit), captionOf(unit)]
	const fits = (said) => (width - 12 - (caption ? measure(caption, 14) + 8 : 0)) / measure(said, 1, 620)
	const [long, full] = [plain(value, sign), exact(value, sign)]
	const isLong = fits(long) < 16 && isFinite(value)
	const said = isLong ? amount(value, sign, { notation: abs(value) < 1e15 ? 'compact' : 'scientific', maximumSignificantDigits: 4 }) : long
	const more = said === full ? {} : { tabindex: 0, 'data-full': exact(value, unit) }
	const size = clamp(14, min(fits(said), height * 0.32, height / count / 1.9), 52)
	return [['b', { tabindex: null, 'data-full': null, style: `font-size: ${size}px`, ...more }, said], ['small', {}, caption]]
}

function change(now, before, unit) {
	const [a, b] = [number(now), number(before)]
	if (a == null || b == null) return []
	const signed = { signDisplay: 'exceptZero', maximumFractionDigits: 1 }
	const by = unit === '%' ? `${amount(a - b, '', { ...signed, maximumFractionDigits: 3 })} points`
		: b ? amount((a - b) / abs(b), '', { ...signed, style: 'percent' }) : amount(a, '', signed)
	return [['span', {}, `${by} from ${plain(b, signOf(unit))} before`]]
}

function spark({ result, options }, column) {
	const said = read({ ...result, columns: result.columns.filter((each) => each === column || isTime(each)) }, 'line')
	if (!said?.timed || !said.x[1]) return []
	const series = [{ ...fill(said.series[0], said.x.length), colour: 'c0' }]
	const [low, high] = reach(series[0].values)
	const y = between(low, high, 29, 3)
	return [['svg', { viewBox: '0 0 100 32', preserveAspectRatio: 'none', 'aria-hidden': 'true' },
		lines({ said, series }, { at: said.x.map(between(...span(said, options), 1, 99)) }, { y, base: y(max(low, min(0, high))) })]]
}

// --- Tables: the first rows, and more as one scrolls

function tableView({ result: { columns, records }, open }) {
	const shown = records.slice(0, open || ROWS)
	const kind = (column) => (isNumber(column) ? 'n' : column.type)
	const head = columns.map((column) => ['th', { class: kind(column), scope: 'col' }, words(column.name)])
	const line = (row) => ['tr', {}, columns.map((column) => {
		const [said, all] = [cell(row[column.name], column), row[column.name]]
		return ['td', { class: kind(column), dir: isText(column) ? 'auto' : null, title: isTime(column) && /\.\d/.test(all) ? all : null }, said]
	})]
	return [['div', { class: 'rows', role: 'group', 'aria-label': 'Result', tabindex: 0 }, [
		['table', {}, [['thead', {}, [['tr', {}, head]]], ['tbody', {}, shown.map(line)]]],
		more(records.length - shown.length)]]]
}

function scrolled({ target: { scrollHeight, scrollTop, clientHeight } }, chart) {
	const isNear = scrollHeight - scrollTop - clientHeight < 300
	if (isNear && chart.box.querySelector('[data-act=rows]') && (chart.open || chart.kind === 'table')) redraw(chart, acts.rows(chart) && {})
}

// --- Drawing into a box

const charts = new WeakMap()
const dirty = new Set()
const views = { panels: panelsView, rows: rowsView, number: numberView, table: tableView }
const sizes = new ResizeObserver((entries) => {
	for (const { target, contentRect: { width, height } } of entries) dirty.add(assign(charts.get(target), { width, height }))
	render()
})

export function draw(box, metric, result, options = {}) {
	if (!charts.has(box)) adopt(box)
	redraw(charts.get(box), { metric, result, options })
}

function adopt(box) {
	charts.set(box, { box, hidden: new Set(), limit: MOST, open: 0 })
	box.classList.add('drawn')
	for (const type in heard) box.addEventListener(type, (event) => heard[type](event, charts.get(box)), type === 'scroll')
	sizes.observe(box)
}

function redraw(chart, changes) {
	if (!dirty.size) requestAnimationFrame(render)
	dirty.add(assign(chart, changes))
}

// Together, so that writing and measuring do not alternate.
function render() {
	const batch = [...dirty].filter(({ width, height, metric }) => width && height && metric)
	dirty.clear()
	batch.forEach(outline)
	const measured = batch.map(({ box }) => [...box.querySelectorAll('.panels svg')].map((svg) => svg.getBoundingClientRect()))
	batch.forEach((chart, i) => finish(chart, measured[i]))
}

function outline(chart) {
	const { box, result: { records, truncated } } = chart
	const { kind } = chart
	prepare(chart)
	if (kind !== chart.kind) box.replaceChildren()
	const notes = [!records[0] && 'No rows', truncated && `The first ${exact(records.length)} rows, there are more`,
		chart.said?.dropped && `${exact(chart.said.dropped)} rows without a time are not drawn`]
	const view = records[0] ? views[chart.kind](chart) : []
	patch(box, [...view, ['p', { class: 'note' }, sentences(notes)], ['p', { class: 'unseen', 'aria-live': 'polite' }]])
}

function prepare(chart) {
	const { metric: { chart: kind }, result, width } = chart
	const said = /line|bar|stacked/.test(kind) ? read(result, kind) : null
	assign(chart, { said, plan: null, kind: said ? 'panels' : kind === 'number' && result.records[0] ? 'number' : 'table' })
	if (!said) return
	chart.panels = panelsOf(chart)
	if (kind === 'hbar' || (kind !== 'line' && !said.timed && !said.ordered && !hasRoom(said, width))) chart.kind = 'rows'
}

function finish(chart, measured) {
	if (chart.kind === 'panels') plot(chart, measured)
	if (chart.kind === 'rows') planRows(chart)
	if (pointed !== chart) return
	if (chart.point < chart.plan?.count) point(chart, chart.point)
	else unpoint()
}

// --- Tooltips: the same for mouse, touch and keys

const tip = assign(document.createElement('div'), { className: 'tip', popover: 'manual', hidden: true, ariaHidden: 'true' })
let pointed

export function unpoint() {
	if (!pointed) return
	pointed.plan?.mark()
	pointed = pointed.point = null
	tip.hidePopover?.()
	tip.hidden = true
}

// All digits, but for zeros that say nothing.
const precise = (raw, unit) => exact(typeof raw === 'string' ? raw.replace(/(\.\d\d\d*?)0+$/, '$1') : raw, unit)

// Events at one time are told together.
function entries({ panels, said }, i) {
	const together = said.loose ? [...said.x.keys()].filter((other) => said.x[other] === said.x[i]) : [i]
	return panels.flatMap(({ series, unit }) => {
		const list = series.flatMap(({ name, colour, raws }) => together.filter((each) => raws[each] !== undefined)
			.map((each) => ({ name, colour, value: precise(raws[each], unit) })))
		return series[1]?.from ? [...list, { name: 'Total', colour: 'none', value: plain(sumAt({ series }, i), unit) }] : list
	})
}

function point(chart, n) {
	if (pointed !== chart) unpoint()
	pointed = assign(chart, { point: n })
	const { plan, said } = chart
	const all = entries(chart, plan.slot(n))
	const list = all[24] ? [...all.slice(0, 20), { name: `${all.length - 20} more`, colour: 'none', value: '' }] : all
	const title = said.label(plan.slot(n))
	const line = ({ name, colour, value }) => ['p', {}, [['i', { class: colour }], ['span', { dir: 'auto' }, name], ['em', {}, value]]]
	plan.mark(n)
	tell([['b', { dir: 'auto' }, title], ...list.map(line)], plan.place(n))
	return `${title}: ${list.map(({ name, value }) => `${name} ${value}`).join(', ') || 'no value'}`
}

function tell(view, { x, top, bottom }) {
	if (!tip.isConnected) document.body.append(tip)
	patch(tip, view)
	tip.hidden = false
	if (!tip.matches(':popover-open')) tip.showPopover?.()
	const { offsetWidth: width, offsetHeight: height } = tip
	const left = x + 14 + width > innerWidth ? x - 14 - width : x + 14
	const y = top + height > innerHeight ? bottom - height : top
	const inside = (at, size, room) => `${max(8, min(at, room - size - 8))}px`
	assign(tip.style, { left: inside(left, width, innerWidth), top: inside(y, height, innerHeight) })
}

function below(node, indent) {
	const { left, top, bottom } = node.getBoundingClientRect()
	return { x: left + indent, top: bottom + 5, bottom: top - 5 }
}

// A label that is cut or a figure that is rounded, in full.
function tellAll(node) {
	const said = node.querySelector('span') || node
	if (!node.dataset.full && said.scrollWidth <= said.clientWidth) return
	unpoint()
	pointed = {}
	tell([['b', { dir: 'auto' }, node.dataset.full || said.textContent]], below(node, -14))
}

function over(event, chart) {
	const named = event.target.closest('[data-full], .legend button')
	if (named) return tellAll(named)
	const n = chart.plan && event.target.closest('svg, .bars') ? chart.plan.near(event) : -1
	if (n < 0) unpoint()
	else if (pointed !== chart || n !== chart.point) point(chart, n)
}

function focused({ target }) {
	if (pointed && !pointed.box) unpoint()
	if (target.matches('[data-full], .legend button')) tellAll(target)
}

function keyed(event, chart) {
	if (!chart.plan || !event.target.matches('svg, .bars')) return
	const [now, last] = [pointed === chart ? chart.point : null, chart.plan.count - 1]
	const [on, back] = [now == null ? 0 : now + 1, now == null ? last : now - 1]
	const next = { ArrowRight: on, ArrowDown: on, ArrowLeft: back, ArrowUp: back, Home: 0, End: last }[event.key]
	if (next === undefined) return
	event.preventDefault()
	chart.box.querySelectorAll('.bars li')[clamp(0, next, last)]?.scrollIntoView({ block: 'nearest' })
	write(chart.box.lastElementChild, point(chart, clamp(0, next, last)))
}

const acts = {
	toggle: ({ hidden }, name) => hidden.delete(name) || hidden.add(name),
	more: (chart) => { chart.limit += 40 },
	fewer: (chart) => { chart.limit = MOST },
	rows: (chart) => { chart.open = (chart.open || ROWS) + ROWS },
	close: (chart) => { chart.open = 0 },
}

function clicked({ target }, chart) {
	const { act, name } = target.closest('[data-act]')?.dataset || {}
	if (act) redraw(chart, acts[act](chart, name) && {})
}

const heard = {
	pointermove: over,
	pointerdown: over,
	pointerleave: ({ pointerType }) => pointerType === 'touch' || unpoint(),
	keydown: keyed,
	focusin: focused,
	focusout: ({ relatedTarget }, { box }) => box.contains(relatedTarget) || unpoint(),
	click: clicked,
	scroll: scrolled,
}
addEventListener('keydown', ({ key }) => key === 'Escape' && unpoint(), true)
addEventListener('scroll', () => pointed?.plan && point(pointed, pointed.point), { capture: true, passive: true })
addEventListener('pointerdown', ({ target }) => pointed?.box?.contains(target) || unpoint(), true)
