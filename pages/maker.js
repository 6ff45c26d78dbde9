// A new tile from words or SQL, and a tile's definition to read or change; nothing is stored before it has been seen.

import { api, inFull, pathOf } from './api.js'
import { draw, sentences, write } from './charts.js'
import { $ } from './dom.js'
import { guessChart, titleOf } from './tiles.js'

let edited = null // the definition that is changed; none makes a new tile
let proposal = null // what the last preview answered

const chosen = () => $('make').elements.how.value
const source = () => (chosen() === 'prompt' ? $('prompt') : $('query'))

// --- What the service says against the text, at its place

function select(area, line, column) {
	const start = area.value.split('\n').slice(0, line - 1).join('\n').length + (line > 1) + column - 1
	const [word] = /^[\w$.]+|/.exec(area.value.slice(start))
	area.setSelectionRange(start, start + Math.max(1, word.length))
}

function refuse(problem) {
	const detail = problem.errors?.[0]?.detail
	const [, line, column, message] = /line (\d+), column (\d+): (.*)/s.exec(detail) || []
	const isPlaced = line && chosen() === 'query'
	write($('refused'), isPlaced ? `Line ${line}, column ${column}: ${message}.` : inFull(problem))
	source().setAttribute('aria-invalid', 'true')
	source().focus()
	if (isPlaced) select($('query'), +line, +column)
}

// --- The dialog

function forget() {
	proposal = null
	$('proposal').hidden = true
	write($('refused'))
	for (const id of ['prompt', 'query']) $(id).removeAttribute('aria-invalid')
}

function choose(how) {
	$('make').elements.how.value = how
	$('as-prompt').hidden = how !== 'prompt'
	$('as-query').hidden = how !== 'query'
	write($('refused'))
}

function open({ heading, how, query = '', title = '', origin = '', writable = true }) {
	write($('making'), heading)
	write($('origin'), origin)
	Object.assign($('query'), { value: query, readOnly: !writable })
	$('prompt').value = ''
	$('title').value = title
	$('how').hidden = $('preview').hidden = !writable
	forget()
	choose(how)
	$('maker').showModal()
	source().focus()
}

export function makeTile() {
	edited = null
	open({ heading: 'New tile', how: 'prompt' })
}

function originOf({ id, source: kind, prompt }) {
	if (kind === 'file') return `It comes from queries/${id}.sql and is edited there.`
	return prompt ? `Made from the words “${prompt}”.` : ''
}

export async function showDefinition(tile, mayWrite) {
	const { data } = await api('GET', `${pathOf(tile.id)}/definition`)
	const { query, title, is_editable: isEditable } = data
	edited = data
	open({ heading: titleOf(tile), how: 'query', query, title, origin: originOf(data), writable: mayWrite && isEditable })
}

// The SQL that words gave is where one's own begins.
function propose(data) {
	proposal = data
	const { query, columns, records, notes, truncated } = data
	$('query').value = query
	$('title').value ||= $('prompt').value.trim().slice(0, 120)
	$('proposal').hidden = false
	write($('notes'), sentences(notes))
	draw($('sample'), { title: 'Preview', unit: '', chart: guessChart(columns) }, { columns, records, truncated })
	$('title').focus()
}

export async function preview(event) {
	event.preventDefault()
	forget()
	const body = { [chosen() === 'prompt' ? 'query_generation_prompt' : 'query']: source().value }
	$('preview').disabled = true
	const answer = await api('POST', 'metrics?dry_run=true', body).catch((problem) => ({ problem }))
	$('preview').disabled = false
	if (answer.problem) refuse(answer.problem)
	else propose(answer.data)
}

// What was seen is what is kept: a model might write something else the next time. Resolves to the tile's id.
export async function keep() {
	const body = { query: proposal.query, title: $('title').value }
	const request = edited ? ['PATCH', pathOf(edited.id), { ...body, version: edited.version }] : ['POST', 'metrics', body]
	const answer = await api(...request).catch((problem) => ({ problem }))
	if (answer.problem) return refuse(answer.problem)
	$('maker').close()
	return answer.data.id
}

$('maker').addEventListener('input', ({ target }) => {
	if (target.name === 'how') choose(target.value)
	else if (target === source()) forget()
})
