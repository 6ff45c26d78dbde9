// The period that is chosen, and how each metric is asked for it.
// The service's sessions are in UTC, and so is the page.

const MINUTE = 6e4
const DAY = 864e5
const midnight = (at) => at - at % DAY
const NAMES = ['start_date', 'end_date', 'day_range']

// From and to in milliseconds, both included, and whether that is exact or whole days; null: each metric's own.
export function spanOf({ period, from, to }, now = Date.now()) {
	const today = midnight(now)
	const days = (first, last = today) => ({ from: first, to: last + DAY - 1 })
	const until = Math.ceil(now / MINUTE) * MINUTE
	const date = new Date(now)
	if (period === 'hour') return { from: until - 60 * MINUTE, to: until, exact: true }
	if (period === 'day') return { from: until - DAY, to: until, exact: true }
	if (period === 'month') return days(Date.UTC(date.getUTCFullYear(), date.getUTCMonth()))
	if (period === 'year') return days(Date.UTC(date.getUTCFullYear(), 0))
	if (period === 'all') return { all: true }
	if (period === 'custom') return from || to ? days(Date.parse(from) || 0, Date.parse(to) || today) : null
	return +period > 0 ? days(today - (period - 1) * DAY) : null
}

function written(at, type = 'date', exact = false) {
	const text = new Date(at).toISOString()
	if (!/^timestamp/.test(type)) return text.slice(0, 10)
	const moment = exact ? text.slice(0, 19) : text.replace('.999Z', '.999999').replace('.000Z', '')
	return type === 'timestamptz' ? `${moment.replace('Z', '')}Z` : moment.replace('Z', '')
}

const typeIn = (parameters, name) => parameters.find((each) => each.name === name)?.type

export const takesPeriod = ({ parameters }) => parameters.some(({ name }) => NAMES.includes(name))
export const isOfPeriod = ({ name }) => NAMES.includes(name)

// Every metric accepts all three, and heeds those that it has.
export function periodParams({ parameters }, span) {
	if (!span) return {}
	if (span.all) return { start_date: written(0, typeIn(parameters, 'start_date')), day_range: '36500' }
	const { from, to, exact } = span
	return {
		start_date: written(from, typeIn(parameters, 'start_date'), exact),
		end_date: written(to, typeIn(parameters, 'end_date'), exact),
		day_range: String(Math.max(1, Math.round((to - from) / DAY))),
	}
}

export function before({ from, to, all, exact }) {
	if (all) return null
	const long = exact ? to - from : to - from + 1
	return { from: from - long, to: to - long, exact }
}

// What a tile says about its period when it is not the one that is chosen.
export function ownPeriod(metric, span) {
	if (!span) return ''
	if (!takesPeriod(metric)) return 'own period'
	const types = metric.parameters.filter(isOfPeriod).map(({ type }) => type)
	if (span.exact && !types.some((type) => /^timestamp/.test(type))) return 'whole days'
	const past = span.to < midnight(Date.now())
	const endless = !metric.parameters.some(({ name }) => name === 'end_date')
	return past && endless ? 'until today' : ''
}
