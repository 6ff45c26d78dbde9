// What keeps the tiles fresh: one socket for all of them, and asking now and then where that cannot be.

import { api, pathOf, token } from './api.js'
import { parse } from './charts.js'
import { $ } from './dom.js'
import { sent } from './fields.js'
import { before, ownParameters, periodParams, spanOf } from './period.js'
import { askAgain } from './signin.js'
import { accept, all, isWaiting, keyOf, kindOf, tiles, update } from './tiles.js'
import { view } from './view.js'

const SLOWEST = 30 // seconds between two tries to connect

let socket = null
let tries = 0
let timer

const isOpen = () => socket?.readyState === WebSocket.OPEN
const send = (message) => socket.send(JSON.stringify(message))

const authorize = () => send({ type: 'auth', token })

// --- What each is asked for

function paramsOf({ id, metric }) {
	const params = periodParams(metric, spanOf(view))
	const missing = []
	for (const parameter of ownParameters(metric)) {
		const value = view[keyOf({ id }, parameter)]
		if (value) params[parameter.name] = sent(value, parameter.type)
		else if (parameter.required) missing.push(parameter)
	}
	return { params, missing }
}

export function ask() {
	for (const tile of all()) {
		const { params, missing } = paramsOf(tile)
		const key = JSON.stringify(params)
		if (key === tile.key && missing.length === tile.missing.length) continue
		unsubscribe(tile)
		update(tile, { params, missing, key, etag: null, busy: true, problem: null, previous: null })
		if (socket?.readyState !== WebSocket.CONNECTING) refresh(tile)
	}
}

const read = (id, params, etag) => api('GET', `${pathOf(id)}?${new URLSearchParams(params)}`, null, etag)

async function load(tile) {
	const { id, params, key, etag } = tile
	const answer = await read(id, params, etag).catch((problem) => ({ problem }))
	if (tile.key === key) take(tile, answer)
}

// A number is compared with the period before.
async function loadPrevious(tile) {
	const { id, metric, key, params } = tile
	const earlier = before(metric, spanOf(view))
	if (!earlier || kindOf(tile) !== 'number') return
	const answer = await read(id, { ...params, ...periodParams(metric, earlier) }).catch(() => null)
	if (answer && tile.key === key) update(tile, { previous: answer.data })
}

function take(tile, answer) {
	accept(tile, answer)
	if (!answer.problem && !tile.previous) loadPrevious(tile)
}

// --- The socket

export function unsubscribe(tile) {
	if (tile.asked && isOpen()) send({ type: 'unsubscribe', id: tile.id, params: tile.asked })
	tile.asked = null
}

export function refresh(tile) {
	if (isWaiting(tile)) return unsubscribe(tile)
	if (!isOpen()) return load(tile)
	tile.asked = tile.params
	send({ type: 'subscribe', id: tile.id, params: tile.params })
}

function hear({ id, params, etag, result, ...problem }) {
	const tile = tiles.get(id)
	tries = 0
	if (tile?.key === JSON.stringify(params)) take(tile, result ? { etag, data: result } : { problem })
}

export function connect() {
	clearTimeout(timer)
	if (socket) return
	socket = new WebSocket(new URL('live', location.origin.replace('http', 'ws') + location.pathname))
	socket.onopen = () => {
		if (token) authorize()
		$('state').dataset.state = 'live'
		all().forEach(refresh)
	}
	socket.onmessage = ({ data }) => hear(parse(data))
	socket.onclose = disconnected
}

function disconnected({ code }) {
	socket = null
	for (const tile of all()) tile.asked = null
	const refused = code === 4401 || code === 4403
	$('state').dataset.state = refused ? 'off' : 'down'
	if (refused) return askAgain('refused')
	const seconds = Math.min(SLOWEST, 2 ** tries++) * (0.5 + Math.random()) // jitter, or all pages return at once
	timer = setTimeout(connect, seconds * 1000)
	for (const tile of all()) if (!isWaiting(tile) && (!tile.result || tile.busy)) load(tile)
}

// With another token, or the same one renewed.
export function reconnect() {
	if (isOpen()) authorize()
	else connect()
}

export function poll() {
	ask()
	for (const tile of all().filter((each) => !isWaiting(each))) {
		if (!tile.asked || tile.problem) refresh(tile)
		else if (!tile.metric.live) load(tile)
	}
}
