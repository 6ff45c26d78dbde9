// What the page asks of the service; the token stays in this module's memory.

import { parse } from './charts.js'

let token = ''
let refused // called with whether a token was sent

export const hasToken = () => !!token
export const authorization = () => ({ type: 'auth', token })
export const useToken = (text) => { token = text }
export const whenRefused = (listener) => { refused = listener }

export async function api(method, path, body, etag) {
	// By itself a no-store fetch says no-cache, and every load would run every query.
	const headers = { 'Cache-Control': 'max-stale', 'Content-Type': `application/${method === 'PATCH' ? 'merge-patch+' : ''}json` }
	if (etag) headers['If-None-Match'] = etag
	if (token) headers.Authorization = `Bearer ${token}`
	const answer = await fetch(path, { method, headers, body: body && JSON.stringify(body), cache: 'no-store' })
		.catch(() => { throw { title: 'The service cannot be reached' } })
	const { ok, status } = answer
	const data = await answer.text().then((json) => json && parse(json)).catch(() => ({ title: `Error ${status}` }))
	if (status === 401) refused(!!token)
	if (!ok && status !== 304) throw { ...data, status }
	return { data, etag: answer.headers.get('ETag') }
}
