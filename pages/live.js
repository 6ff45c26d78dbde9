// What keeps the tiles fresh: one socket for all of them, and asking now and then where that cannot be.

import { api, authorization, hasToken, pathOf } from './api.js'
import { parse } from './charts.js'
import { $, notice } from './dom.js'
import { sent } from './fields.js'
import { before, isOfPeriod, periodParams, spanOf } from './period.js'
import { accept, all, keyOf, kindOf, redraw, tiles } from './tiles.js'
import { view } from './view.js'

const MOST = 200 // subscriptions of one socket
const SLOWEST = 30 // seconds between two tries to connect

let socket = null
let tries = 0
let timer
let refused // called with why the socket was closed: refused or scope
let lost // called when a metric is gone or cannot be worked out
let running = false

const isConnecting = () => socket?.readyState === WebSocket.CONNECTING
const isOpen = () => socket?.readyState === WebSocket.OPEN
const send = (message) => socket.send(JSON.stringify(message))
const isWaiting = ({ fault, missing }) => !!fault || missing.length > 0

export const { dataset: shown } = $('state')
export const whenClosed = (listener) => { refused = listener }
export const whenLost = (listener) => { lost = listener }

// --- What each is asked for

function paramsOf({ id, metric }) {
	const params = periodParams(metric, spanOf(view))
	const missing = []
	for (const parameter of metric.parameters.filter((each) => !isOfPeriod(each))) {
		const value = view.values[keyOf({ id }, parameter)]
		if (value) params[parameter.name] = sent(value, parameter.type)
		else if (parameter.required) missing.push(parameter)
	}
	return { params, missing }
}

// With every, those too that are asked for what they were asked for before.
export function ask(every) {
	for (const tile of all()) {
		const { params, missing } = paramsOf(tile)
		const key = JSON.stringify(params)
		if (key === tile.key && !every && missing.length === tile.missing.length) continue
		if (key !== tile.key) unsubscribe(tile)
		const other = key !== tile.key && { key, etag: null, busy: true, problem: null, previous: null }
		redraw(tile, { params, missing, ...other })
		if (running && !isConnecting()) refresh(tile)
	}
}

export const queryOf = ({ params }) => new URLSearchParams(params).toString()

async function load(tile) {
	const { id, key, etag } = tile
	const answer = await api('GET', `${pathOf(id)}?${queryOf(tile)}`, null, etag).catch((problem) => ({ problem }))
	if (tile.key === key) take(tile, answer)
}

// A number is compared with the period before, where the metric can be asked for it.
async function loadPrevious(tile) {
	const span = spanOf(view)
	const names = tile.metric.parameters.map(({ name }) => name)
	const earlier = span && names.includes('start_date') && names.includes('end_date') && before(span)
	if (!earlier || kindOf(tile) !== 'number') return
	const { key } = tile
	const query = new URLSearchParams({ ...tile.params, ...periodParams(tile.metric, earlier) })
	const answer = await api('GET', `${pathOf(tile.id)}?${query}`).catch(() => null)
	if (answer && tile.key === key) redraw(tile, { previous: answer.data })
}

function take(tile, answer) {
	accept(tile, answer)
	if ([404, 500].includes(answer.problem?.status)) lost()
	if (!answer.problem && !tile.previous) loadPrevious(tile)
}

// --- The socket

export function unsubscribe(tile) {
	if (tile.asked && isOpen()) send({ type: 'unsubscribe', id: tile.id, params: tile.asked })
	tile.asked = null
}

export function refresh(tile) {
	if (isWaiting(tile)) return unsubscribe(tile)
	const room = tile.asked || all().filter(({ asked }) => asked).length < MOST
	if (!isOpen() || !room) return load(tile)
	tile.asked = tile.params
	send({ type: 'subscribe', id: tile.id, params: tile.params })
}

function hear(message) {
	const { id, params, etag, result } = message
	const tile = tiles.get(id)
	tries = 0
	if (!id) notice(message.title, message.detail)
	if (JSON.stringify(params) === tile?.key) take(tile, { etag, data: result, problem: !result && message })
}

export function connect() {
	clearTimeout(timer)
	running = true
	if (socket) return
	socket = new WebSocket(new URL('live', location.origin.replace('http', 'ws') + location.pathname))
	socket.onopen = () => {
		if (hasToken()) send(authorization())
		shown.state = 'live'
		ask(true)
	}
	socket.onmessage = ({ data }) => hear(parse(data))
	socket.onclose = disconnected
}

function disconnected({ code }) {
	socket = null
	for (const tile of all()) tile.asked = null
	const why = { 4401: 'refused', 4403: 'scope' }[code]
	shown.state = why ? 'off' : 'down'
	if (why) return refused(why)
	const seconds = Math.min(SLOWEST, 2 ** tries++) * (0.5 + Math.random()) // jitter, or all pages return at once
	timer = setTimeout(connect, seconds * 1000)
	for (const tile of all()) if (!isWaiting(tile) && (!tile.result || tile.busy)) load(tile)
}

// With another token, or the same one renewed.
export function reconnect() {
	if (!isOpen()) return running && connect()
	send(authorization())
	ask(true)
}

export function poll() {
	if (document.hidden || !running) return
	ask()
	for (const tile of all().filter((each) => !isWaiting(each))) {
		if (!tile.asked || tile.problem) refresh(tile)
		else if (!tile.metric.live) load(tile)
	}
}
