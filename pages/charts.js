// Draws a metric's result into a box of any page: import { draw } and link charts.css.

const { abs, ceil, floor, log10, max, min } = Math
const { assign } = Object

// --- Elements: a view is [tag, attributes, text or views]. Patched in place, nodes keep focus and
// move by CSS transitions. Data become text and attributes, never markup.

const SVG = 'http://www.w3.org/2000/svg'

export function patch(parent, views) {
	views.forEach(([tag, attributes, content], i) => {
		let node = parent.children[i]
		if (node?.localName !== tag) node = parent.insertBefore(document.createElementNS(tag === 'svg' ? SVG : parent.namespaceURI, tag), node)
		for (const name in attributes) node.setAttribute(name, attributes[name])
		if (content?.map) patch(node, content)
		else write(node, content)
	})
	while (parent.children.length > views.length) parent.lastElementChild.remove()
}

export function write(node, text) {
	if (node.textContent !== text) node.textContent = text || ''
}

export const sentences = (parts) => parts.filter(Boolean).map((part) => part.replace(/[.\s]*$/, '.')).join(' ')

// --- Numbers and dates

const DAY = 864e5
const isNumber = ({ type }) => /^(int[248]|numeric|float[48])$/.test(type)
const isTime = ({ type }) => /^(date|timestamp(tz)?)$/.test(type)
export const words = (name) => name.replaceAll('_', ' ')
const formats = new Map()

function format(value, options, Kind = Intl.NumberFormat) {
	const key = JSON.stringify(options)
	if (!formats.has(key)) formats.set(key, new Kind(undefined, options))
	return formats.get(key).format(value)
}

// Digits that a double would lose (bigint, numeric) stay text.
export const parse = (json) => JSON.parse(json, (_, value, context) =>
	typeof value === 'number' && context && context.source !== String(value) ? context.source : value)

function exact(value) {
	const [all, { length } = ''] = /^-?\d+(?:\.(\d{1,20}))?$/.exec(value) || []
	return all ? format(all, { minimumFractionDigits: length, maximumFractionDigits: length }) : String(value ?? '–')
}

const plain = (value) => value == null || !(value % 1) ? exact(value)
	: format(value, { maximumFractionDigits: abs(value) < 1 ? 4 : 2 })

// The service's sessions are in UTC, and so is the page.
const millis = (text) => Date.parse(/T[^Z+]*$/.test(text) ? `${text}Z` : text)
const date = (at, options) => format(at, { timeZone: 'UTC', ...options }, Intl.DateTimeFormat)
const moment = (at) => date(at, { dateStyle: 'medium', ...(at % DAY && { timeStyle: 'short' }) })

function cell(value, column) {
	if (value == null || isNumber(column)) return exact(value)
	if (isTime(column)) return value.replace('T', ' ').replace('+00:00', '')
	return typeof value === 'object' ? JSON.stringify(value) : String(value)
}

// --- Scales

const between = (a, b, p, q) => (value) => (a === b ? (p + q) / 2 : p + ((value - a) / (b - a)) * (q - p))

function extent(values) {
	const known = values.filter((value) => value != null)
	return known.reduce(([low, high], value) => [min(low, value), max(high, value)], [known[0] ?? 0, known[0] ?? 1])
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

function timeTicks(low, high, count) {
	const fits = (step) => (high - low) / step <= max(1, count)
	const step = [1, 5, 15, 60, 180, 360, 1440, 2880, 10080, 20160, 40320].map((minutes) => minutes * 6e4).find(fits)
	const months = [1, 3, 6, 12, 60, 120].find((n) => fits(n * 30 * DAY)) || 600
	const at = (n) => (step ? n * step + 4 * DAY : Date.UTC(1970, n * months)) // the epoch's first Monday
	const name = (p) => date(p, p % DAY ? { timeStyle: 'short' } : { month: 'short', [step ? 'day' : 'year']: 'numeric' })
	const list = []
	for (let n = floor((low - 4 * DAY) / (step || months * 31 * DAY)); at(n) <= high; n++) list.push([at(n), name(at(n))])
	return list.filter(([p]) => p >= low)
}

// --- What a result says: {x, timed, label(i), series: [{name, values}]}

const number = (value) => (value == null || !isFinite(value) ? null : +value)

function read({ columns, records }) {
	const names = (test) => columns.filter(test).map(({ name }) => name)
	const [[time], numbers, texts] = [names(isTime), names(isNumber), names((column) => !isNumber(column) && !isTime(column))]
	if (!time && !texts[0] && numbers[1]) texts.push(numbers.shift())
	const text = (row) => texts.map((name) => row[name] ?? '–').join(' · ')
	const key = (row) => (time ? millis(row[time]) : text(row))
	const rows = time ? records.filter(key).sort((a, b) => key(a) - key(b)) : records
	const long = time && texts[0] && !numbers[1] // a time, a text and one number: a series for each text
	const found = new Map(rows.map((row) => [text(row) + key(row), number(row[numbers[0]])]))
	const x = long ? [...new Set(rows.map(key))] : rows.map(key)
	const series = long ? [...new Set(rows.map(text))].map((name) => ({ name, values: x.map((at) => found.get(name + at) ?? null) }))
		: numbers.map((name) => ({ name: words(name), values: rows.map((row) => number(row[name])) }))
	return { x, timed: !!time, series: numbers[0] ? series.slice(0, 8) : [], label: (i) => (time ? moment(x[i]) : x[i]) }
}

function summary(title, kind, { label, x, series }) {
	const ranges = series.map(({ name, values }) => `${name} from ${extent(values).map(plain).join(' to ')}`)
	return sentences([`${title}, ${kind} chart, ${label(0)} to ${label(x.length - 1)}`, ...ranges])
}

// --- Charts

const text = (x, y, kind, content) => ['text', { x, y, class: kind }, content]

function across({ x, timed }, isBar, left, right) {
	if (timed) {
		const gap = min(...x.map((at, i) => at - x[i - 1] || Infinity), x.at(-1) - x[0] || DAY)
		const pad = isBar ? gap / 2 : 0
		const place = between(x[0] - pad, x.at(-1) + pad, left, right)
		const marks = timeTicks(x[0], x.at(-1), (right - left) / 62).map(([at, name]) => [place(at), name])
		return { at: x.map(place), step: isBar ? place(x[0] + gap / 2) - left : 0, marks }
	}
	const step = (right - left) / x.length
	const every = ceil(46 / step)
	const room = floor((step * every) / 6.4)
	const at = x.map((_, i) => left + (i + 0.5) * step)
	const marks = x.map((name, i) => [at[i], name.length > room ? `${name.slice(0, room - 1)}…` : name])
	return { at, step, marks: marks.filter((_, i) => i % every === 0) }
}

function lines({ x, series, timed }, at, y, base) {
	const loose = timed && new Set(x).size < x.length // dates that repeat are events: dots, no line
	return series.flatMap(({ values }, n) => {
		const step = (value, i) => {
			const to = `${at[i].toFixed(1)},${y(value).toFixed(1)}`
			return value == null ? '' : loose || values[i - 1] == null ? `M${to}h0` : `L${to}`
		}
		const d = values.map(step).join('')
		const area = series[1] || loose || y(0) > base || values.includes(null) ? '' : `${d}L${at.at(-1)},${base}L${at[0]},${base}Z`
		return [['path', { class: `area c${n}`, d: area }], ['path', { class: `line c${n} ${loose ? 'dots' : ''}`, d }]]
	})
}

function bars({ series }, at, y, base, step) {
	const width = max(1, min(step * 0.78, 72) / series.length)
	return series.flatMap(({ values }, n) => values.map((value, i) => ['rect', {
		class: `column c${n}`, x: at[i] + (n - series.length / 2) * width, width: max(1, width - 1),
		y: min(y(value || 0), base), height: abs(base - y(value || 0)) }]))
}

function planChart(said, isBar, width, height, unit) {
	const { series } = said
	const levels = ticks(reach(series.flatMap(({ values }) => values), isBar), floor(height / 48))
	const names = levels.map((level) => format(level, { notation: 'compact', maximumSignificantDigits: 4 }))
	const [left, right, top, bottom] = [12 + 6.2 * max(...names.map(({ length }) => length)), width - 20, unit ? 22 : 8, height - 21]
	const y = between(levels[0], levels.at(-1), bottom, top)
	const base = y(max(0, levels[0]))
	const { at, step, marks } = across(said, isBar, left, right)
	const rule = (level) => ['path', { class: level ? 'rule' : 'base', d: `M${left},${y(level)}H${right}` }]
	const spot = (i) => ({ values }, n) => ['circle', { class: `spot c${n}`, cx: at[i], cy: y(values[i]), r: values[i] == null ? 0 : 4.5 }]
	return {
		at,
		drawing: [
			['g', {}, levels.map(rule)],
			['g', {}, (isBar ? bars : lines)(said, at, y, base, step)],
			['g', {}, [text(3, 10, 'unit', unit), ...levels.map((level, i) => text(left - 8, y(level) + 4, 'level', names[i])),
				...marks.map(([p, name]) => text(p, height - 5, 'name', name))]],
		],
		mark: (i) => [['rect', { class: 'lit', x: at[i] - step / 2, y: top, width: max(1, step), height: bottom - top }], ...series.map(spot(i))],
	}
}

function tableView({ columns, records, truncated }) {
	const rows = records.slice(0, 500)
	const line = (tag, say) => ['tr', {}, columns.map((column) => [tag, { class: isNumber(column) ? 'n' : column.type }, say(column)])]
	return [
		['table', {}, [['thead', {}, [line('th', ({ name }) => words(name))]],
			['tbody', {}, rows.map((row) => line('td', (column) => cell(row[column.name], column)))]]],
		['p', {}, (truncated || records[500]) && `The first ${rows.length} of ${truncated ? 'over ' : ''}${exact(records.length)} rows.`],
	]
}

// In time, the newest row is the figure.
function numberView({ columns, records }, unit) {
	const time = columns.find(isTime)?.name
	const [row] = time ? [...records].sort((a, b) => millis(b[time]) - millis(a[time])) : records
	const figure = (column) => isNumber(column) ? [['b', {}, plain(row[column.name])], ['small', {}, unit]] : [['span', {}, cell(row[column.name], column)]]
	return [['dl', {}, columns.map((column) => ['div', {}, [['dt', {}, words(column.name)], ['dd', {}, figure(column)]]])]]
}

// --- Drawing into a box

const boxes = new WeakMap()
const sizes = new ResizeObserver((entries) => entries.forEach(({ target }) => render(target)))

// metric is {title, chart, unit}, result {columns, records, truncated}, and options {asTable, say}: say is told
// what the arrow keys read. Draws again by itself when the box changes its size.
export function draw(box, metric, result, options = {}) {
	if (!boxes.has(box)) adopt(box)
	assign(boxes.get(box), { metric, result, options })
	render(box)
}

function adopt(box) {
	boxes.set(box, {})
	box.classList.add('drawn')
	assign(box, { onpointermove: (event) => hover(event, box), onpointerleave: unpoint, onfocusout: unpoint })
	box.addEventListener('keydown', (event) => event.target.localName === 'svg' && readKeys(event, box) && event.preventDefault())
	sizes.observe(box)
}

function render(box) {
	const state = boxes.get(box)
	const { metric: { chart, unit }, result, options: { asTable } } = state
	const said = read(result)
	state.plan = null
	if (!result.records[0]) return patch(box, [])
	if (!asTable && /line|bar/.test(chart) && said.x[0] != null && said.series[0]) return drawChart(box, state, said)
	const view = chart === 'number' && !asTable ? numberView(result, unit) : tableView(result)
	patch(box, [['div', { class: 'rows', role: 'group', 'aria-label': 'Result', tabindex: 0 }, view]])
}

function drawChart(box, state, said) {
	const { chart, unit, title } = state.metric
	const legend = said.series[1] ? said.series.map(({ name }, n) => ['li', { class: `c${n}` }, name]) : []
	const frame = { role: 'img', 'aria-roledescription': 'chart, arrow keys read its points', tabindex: 0, 'aria-label': summary(title, chart, said) }
	const svg = box.querySelector('svg')
	if (!svg) patch(box, [['figure', {}, [['ul', { class: 'legend' }, legend], ['svg', frame, []]]]])
	else patch(box.querySelector('.legend'), legend, svg.setAttribute('aria-label', frame['aria-label']))
	const { width, height } = box.querySelector('svg').getBoundingClientRect()
	const plan = state.plan = { ...planChart(said, chart === 'bar', max(120, width), max(50, height), unit), said }
	patch(box.querySelector('svg'), [...plan.drawing, ['g', {}, state.point in said.x ? plan.mark(state.point) : []]])
}

// --- Tooltips

const tip = assign(document.createElement('div'), { className: 'tip', hidden: true, ariaHidden: 'true' })
let pointed

export function unpoint() {
	tip.hidden = true
	const { plan } = boxes.get(pointed) || {}
	if (plan) patch(pointed.querySelector('svg').lastChild, [])
	if (pointed) pointed = boxes.get(pointed).point = null
}

function point(box, i) {
	unpoint()
	pointed = box
	const { plan: { at, mark, said: { label, series } }, metric: { unit } } = assign(boxes.get(box), { point: i })
	const values = series.map((each) => `${plain(each.values[i])} ${unit || ''}`)
	patch(box.querySelector('svg').lastChild, mark(i))
	patch(tip, [['b', {}, label(i)], ...series.map(({ name }, n) => ['p', {}, [['i', { class: `c${n}` }, ' '], ['span', {}, name], ['em', {}, values[n]]]])])
	box.firstElementChild.append(tip)
	assign(tip, { hidden: false, className: at[i] * 2 > box.clientWidth ? 'tip flip' : 'tip' }).style.left = `${at[i]}px`
	return `${label(i)}: ${series.map(({ name }, n) => `${name} ${values[n]}`).join(', ')}`
}

function hover({ target, offsetX }, box) {
	const { plan, point: now } = boxes.get(box)
	if (!plan || target.localName !== 'svg') return unpoint()
	const { at } = plan
	const i = at.filter((p, n) => offsetX * 2 > p + at[n + 1]).length
	if (now !== i) point(box, i)
}

function readKeys({ key }, box) {
	const { plan, point: now = -1, options: { say } } = boxes.get(box)
	const last = plan.at.length - 1
	const next = { ArrowRight: (now ?? -1) + 1, ArrowLeft: (now ?? -1) < 0 ? last : now - 1, Home: 0, End: last }[key]
	if (next === undefined) return
	const said = point(box, max(0, min(next, last)))
	say?.(said)
	return true
}
