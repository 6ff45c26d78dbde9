// A parameter's field, by its type.

import { api, pathOf } from './api.js'
import { words } from './charts.js'
import { $ } from './dom.js'

const KINDS = {
	date: 'date', timestamp: 'datetime-local', timestamptz: 'datetime-local', time: 'time',
	int2: 'number', int4: 'number', int8: 'number', numeric: 'number', float4: 'number', float8: 'number',
}
const TEXT = /^(text|varchar|bpchar)$/
const PLAIN = /^(bool|uuid|interval|jsonb?|timetz)$|\[\]$/

const make = (tag, attributes, ...children) => {
	const node = Object.assign(document.createElement(tag), attributes)
	node.append(...children)
	return node
}
const option = (value, text = value) => make('option', { value, textContent: text })

// --- What can be chosen: an enum's labels, and values that results have shown

const isEnum = ({ type }) => !(type in KINDS) && !TEXT.test(type) && !PLAIN.test(type)

// Labels stand in the document alone.
export async function learnLabels(metrics) {
	const having = metrics.filter(({ parameters }) => parameters.some(isEnum))
	if (!having[0]) return
	const { data } = await api('GET', 'openapi.json')
	for (const { id, parameters } of having) {
		const documented = data.paths[`/${pathOf(id)}`]?.get.parameters || []
		const schemas = Object.fromEntries(documented.map(({ name, schema }) => [name, schema]))
		for (const parameter of parameters.filter(isEnum)) parameter.labels = schemas[parameter.name]?.enum
	}
}

const shown = new Map() // values by column
const LONGEST = 40 // characters
const MOST = 60 // values, beyond which they are no choice

export function learnValues({ columns, records }) {
	for (const { name } of columns.filter(({ type }) => TEXT.test(type))) {
		const fresh = records.map((record) => record[name]).filter((value) => value && value.length <= LONGEST)
		const values = new Set([...shown.get(name) || [], ...fresh])
		if (values.size <= MOST) shown.set(name, values)
	}
}

// For a category those of alert_category too.
function suggest(name) {
	const alike = [...shown].filter(([column]) => column === name || column.endsWith(`_${name}`))
	const values = new Set(alike.flatMap(([, each]) => [...each]))
	$('suggested').replaceChildren(...[...values].sort().map((value) => option(value)))
}

// --- The field

function choice(values) {
	const options = values.map(([value, text]) => option(value, text))
	return make('select', { autocomplete: 'off' }, option('', '–'), ...options)
}

function control({ name, type, labels, description }) {
	if (labels) return choice(labels.map((label) => [label, label]))
	if (type === 'bool') return choice([['true', 'yes'], ['false', 'no']])
	const placeholder = type.endsWith('[]') ? 'a, b, …' : /default (.+)$/.exec(description)?.[1] || ''
	const input = make('input', { type: KINDS[type] || 'text', step: 'any', placeholder, autocomplete: 'off' })
	if (!TEXT.test(type)) return input
	input.setAttribute('list', 'suggested')
	input.onfocus = () => suggest(name)
	return input
}

// Says its value, as text and empty when there is none, whenever that has changed.
export function field(parameter, changed) {
	const input = control(parameter)
	input.required = parameter.required
	input.onchange = () => input.reportValidity() && changed(input.value.trim())
	const says = make('span', { textContent: words(parameter.name) })
	return make('label', { className: 'field', title: parameter.description }, says, input)
}

// A field's text as the service reads it.
export function sent(value, type) {
	if (type === 'timestamptz') return `${value}Z`
	return type.endsWith('[]') && !value.startsWith('{') ? `{${value}}` : value
}
