// What the page asks of the service; the token stays in this module's memory.

import { parse, sentences, words } from './charts.js'

export let token = ''
let refused // called with why: a token is wanted, or refused

export const useToken = (text) => { token = text }
export const whenRefused = (listener) => { refused = listener }
export const pathOf = (id) => `metrics/${encodeURIComponent(id)}`

async function answerTo(method, path, headers, body) {
	if (token) headers.Authorization = `Bearer ${token}`
	const answer = await fetch(path, { method, headers, body, cache: 'no-store' }).catch(() => {
		throw Object.assign(new Error('unreachable'), { status: 0 })
	})
	if (answer.status === 401) refused(token ? 'refused' : 'wanted')
	if (answer.ok || answer.status === 304) return answer
	const problem = await answer.json().catch(() => ({ title: `Error ${answer.status}` }))
	throw Object.assign(new Error(problem.title), problem, { status: answer.status })
}

// The data and their ETag; the data are undefined when they are what the ETag says. Throws a problem (RFC 9457).
export async function api(method, path, body, etag) {
	// By itself a no-store fetch says no-cache, and every load would run every query.
	const headers = { 'Cache-Control': 'max-stale', 'Content-Type': 'application/json' }
	if (etag) headers['If-None-Match'] = etag
	const answer = await answerTo(method, path, headers, body && JSON.stringify(body))
	const text = await answer.text()
	return { data: text ? parse(text) : undefined, etag: answer.headers.get('ETag') }
}

export async function download(path) {
	const answer = await answerTo('GET', path, {})
	return { blob: await answer.blob(), truncated: answer.headers.has('X-Truncated') }
}

const VIEWERS = {
	0: 'The service cannot be reached.',
	401: 'Only who has signed in may see this.',
	403: 'You have no access to this metric.',
	404: 'This metric is no longer there.',
	500: 'This metric cannot be worked out.',
	502: 'The model that reads prompts does not answer.',
	503: 'The numbers cannot be had right now.',
	504: 'It takes too long. A shorter period may help.',
}

// A problem as a viewer reads it; the service's own words, which may name settings, are for who runs it.
export function explain({ status, detail, errors = [] }) {
	if (errors[0]) return sentences(errors.map((error) => `${words(error.name)}: ${error.detail}`))
	if (/MAX_/.test(detail)) return 'The result is too large to show. A shorter period may help.'
	return VIEWERS[status] || detail || VIEWERS[500]
}

// The same for who writes: what the service says in full.
export function inFull({ status, title, detail = title, errors = [] }) {
	if (!status) return VIEWERS[0]
	return sentences([detail, ...errors.map((error) => error.detail).filter((text) => !detail.includes(text))])
}
