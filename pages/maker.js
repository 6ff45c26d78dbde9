// A new tile from words or SQL, and a tile's definition to read or change; nothing is stored before it has been seen.

import { api, inFull, pathOf } from './api.js'
import { draw, patch, sentences, words, write } from './charts.js'
import { $ } from './dom.js'
import { isOfPeriod, takesPeriod } from './period.js'
import { guessChart, titleOf } from './tiles.js'

let edited = null // the definition that is changed; none makes a new tile
let proposal = null // what the last preview answered
let finish // called with the id of what was kept

export const whenKept = (listener) => { finish = listener }

const chosen = () => $('make').elements.how.value
const source = () => (chosen() === 'prompt' ? $('prompt') : $('query'))

// --- What the service says against SQL, at its place

function placeOf(problem) {
	const [, line, column, message] = /line (\d+), column (\d+): (.*)/s.exec(problem.errors?.[0]?.detail) || []
	return line && { line: +line, column: +column, message }
}

// The line, and below it a caret; tabs stay, so that they line up.
function excerpt(sql, { line, column }) {
	const text = sql.split('\n')[line - 1] || ''
	return `${text}\n${text.slice(0, column - 1).replace(/[^\t]/g, ' ')}^`
}

function select(area, { line, column }) {
	const start = area.value.split('\n').slice(0, line - 1).join('\n').length + (line > 1) + column - 1
	const [word] = /^[\w$.]+|/.exec(area.value.slice(start))
	area.focus()
	area.setSelectionRange(start, start + Math.max(1, word.length))
}

function refuse(problem) {
	const place = chosen() === 'query' && placeOf(problem)
	write($('refused'), place ? `Line ${place.line}, column ${place.column}: ${place.message}.` : inFull(problem))
	write($('where'), place && excerpt($('query').value, place))
	source().setAttribute('aria-invalid', 'true')
	if (place) select($('query'), place)
	else source().focus()
}

// --- The dialog

function forget() {
	proposal = null
	$('proposal').hidden = true
	write($('refused'))
	write($('where'))
	for (const id of ['prompt', 'query']) $(id).removeAttribute('aria-invalid')
}

function choose(how) {
	$('make').elements.how.value = how
	$('as-prompt').hidden = how !== 'prompt'
	$('as-query').hidden = how !== 'query'
	forget()
}

function open({ heading, how, query = '', prompt = '', title = '', origin = '', writable = true }) {
	write($('making'), heading)
	write($('origin'), origin)
	Object.assign($('query'), { value: query, readOnly: !writable })
	$('prompt').value = prompt
	$('title').value = title
	$('how').hidden = $('preview').hidden = !writable
	$('maker').classList.toggle('reading', !writable)
	choose(how)
	$('maker').showModal()
	source().focus()
}

export function makeTile() {
	edited = null
	open({ heading: 'New tile', how: 'prompt' })
}

const ORIGINS = {
	file: ({ id }) => `It comes from queries/${id}.sql and is edited there.`,
	dataset: () => 'It came with a data set.',
	api: ({ prompt, created_by: by }) => sentences([by && `Made by ${by}`, prompt && `From the words “${prompt}”`]),
}

export async function showDefinition(tile, mayWrite) {
	const { data } = await api('GET', `${pathOf(tile.id)}/definition`)
	const writable = mayWrite && data.is_editable
	edited = data
	const { query, prompt, title, source: kind } = data
	const origin = ORIGINS[kind](data)
	open({ heading: titleOf(tile), how: 'query', query, prompt: prompt || '', title, origin, writable })
}

function propose(data) {
	proposal = data
	const { query, columns, records, notes, parameters, truncated } = data
	const first = truncated || records.length >= 100
	const names = parameters.filter((each) => !isOfPeriod(each)).map(({ name }) => words(name)).join(', ')
	$('proposal').hidden = false
	patch($('notes'), notes.map((note) => ['li', {}, note]))
	const follows = takesPeriod(data) ? 'It follows the period' : 'It has a period of its own'
	const rows = records.length ? first && `The first ${records.length} rows` : 'It answers no rows'
	write($('facts'), sentences([rows, follows, names && `It asks for ${names}`]))
	write($('sql'), query)
	$('written').hidden = chosen() === 'query'
	$('title').value ||= chosen() === 'prompt' ? $('prompt').value.trim().slice(0, 120) : ''
	const chart = guessChart(columns)
	$('sample').hidden = !records.length
	if (records.length) draw($('sample'), { title: 'Preview', unit: '', chart }, { columns, records, truncated: false })
	$('proposal').scrollIntoView({ block: 'nearest' })
	if ($('title').value) $('keep').focus()
	else $('title').focus()
}

const request = () =>
	(chosen() === 'prompt' ? { query_generation_prompt: $('prompt').value.trim() } : { query: $('query').value })

export async function preview() {
	forget()
	$('preview').disabled = true
	const answer = await api('POST', 'metrics?dry_run=true', request()).catch((problem) => ({ problem }))
	$('preview').disabled = false
	if (answer.problem) refuse(answer.problem)
	else propose(answer.data)
}

// What was seen is what is kept: a model might write something else the next time.
export async function keep() {
	const body = { query: proposal.query, title: $('title').value }
	const method = edited ? ['PATCH', pathOf(edited.id), { ...body, version: edited.version }] : ['POST', 'metrics', body]
	const answer = await api(...method).catch((problem) => ({ problem }))
	if (answer.problem) return refuse(answer.problem)
	close()
	finish(answer.data.id)
}

export function close() {
	$('maker').close()
}

function again({ target }) {
	if (target.name === 'how') {
		choose(target.value)
		source().focus()
	} else if (target === $('prompt') || target === $('query')) forget()
}

// The SQL that a prompt gave is where one's own begins.
export function editSql() {
	const { query } = proposal
	choose('query')
	$('query').value = query
	$('query').focus()
}

$('maker').addEventListener('input', again)
$('maker').addEventListener('keydown', ({ key, ctrlKey, metaKey }) => {
	if (key === 'Enter' && (ctrlKey || metaKey) && !$('preview').hidden) $('make').requestSubmit()
})
