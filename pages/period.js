// The period that is chosen, and how each metric is asked for it.
// The service's sessions are in UTC, and so is the page.

const MINUTE = 6e4
const DAY = 864e5
const NAMES = ['start_date', 'end_date', 'day_range']

// Milliseconds, of which the last is not included any more, from 0 if it has no beginning; null: each metric's own period.
export function spanOf({ period, from, to }) {
	const now = new Date()
	const today = now - now % DAY
	const minute = Math.ceil(now / MINUTE) * MINUTE
	const days = (first, last = today) => ({ from: first, to: last + DAY })
	if (period === 'hour') return { from: minute - 60 * MINUTE, to: minute }
	if (period === 'day') return { from: minute - DAY, to: minute }
	if (period === 'month') return days(Date.UTC(now.getUTCFullYear(), now.getUTCMonth()))
	if (period === 'year') return days(Date.UTC(now.getUTCFullYear(), 0))
	if (period === 'all') return days(0)
	if (period === 'custom') return from || to ? days(Date.parse(from) || 0, Date.parse(to) || today) : null
	return +period > 0 ? days(today - (period - 1) * DAY) : null
}

const isMoment = ({ type }) => type.startsWith('timestamp')
const isOfDays = ({ from }) => from % DAY === 0

export const ownParameters = ({ parameters }) => parameters.filter(({ name }) => !NAMES.includes(name))
const periodParameters = ({ parameters }) => parameters.filter(({ name }) => NAMES.includes(name))

// Every metric accepts all three, and heeds those that it has.
export function periodParams(metric, span) {
	if (!span) return {}
	const written = (name, at) => {
		const type = periodParameters(metric).find((each) => each.name === name)?.type ?? 'date'
		const text = new Date(at).toISOString()
		return isMoment({ type }) ? text.slice(0, type === 'timestamptz' ? 24 : 23) : text.slice(0, 10)
	}
	const days = Math.max(1, Math.round((span.to - span.from) / DAY))
	return { start_date: written('start_date', span.from), end_date: written('end_date', span.to - 1), day_range: `${days}` }
}

// The period before, for a metric that can be asked for it.
export function before({ parameters }, span) {
	const bounds = parameters.filter(({ name }) => name === 'start_date' || name === 'end_date')
	return span?.from && bounds[1] ? { from: 2 * span.from - span.to, to: span.from } : null
}

// What a time axis spans, in ISO 8601.
export function axisOf(metric, span) {
	if (!span?.from || !periodParameters(metric)[0]) return {}
	const [from, to] = [span.from, span.to - 1].map((at) => new Date(at).toISOString().slice(0, isOfDays(span) ? 10 : 24))
	return { from, to }
}

// What a tile says about its period when it is not the one that is chosen.
export function ownPeriod(metric, span) {
	const taken = periodParameters(metric)
	if (!span) return ''
	if (!taken[0]) return 'own period'
	return isOfDays(span) || taken.some(isMoment) ? '' : 'whole days'
}
