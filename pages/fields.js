// A parameter's field, by its type.

import { api } from './api.js'
import { words } from './charts.js'

const KINDS = {
	date: ['date'], timestamp: ['datetime-local'], timestamptz: ['datetime-local'], time: ['time'],
	int2: ['number', '1'], int4: ['number', '1'], int8: ['number', '1'],
	numeric: ['number', 'any'], float4: ['number', 'any'], float8: ['number', 'any'],
}
const PLAIN = new Set([...Object.keys(KINDS), 'bool', 'text', 'varchar', 'bpchar', 'uuid', 'interval', 'json', 'jsonb', 'timetz'])

const make = (tag, attributes, ...children) => {
	const node = Object.assign(document.createElement(tag), attributes)
	node.append(...children)
	return node
}
const option = (value, text = value) => make('option', { value, textContent: text })

// --- What can be chosen: an enum's labels, of which only the document knows, and values that results have shown

let learnt = '' // the types that the document has been asked for
const labels = new Map()

function readLabels({ paths }) {
	for (const [path, { get }] of Object.entries(paths)) {
		for (const { name, schema } of get?.parameters || []) if (schema?.enum) labels.set(`${path.slice('/metrics/'.length)}.${name}`, schema.enum)
	}
}

// Resolves when the labels of these metrics' enums are known.
export async function learnEnums(metrics) {
	const strange = metrics.flatMap(({ parameters }) => parameters.map(({ type }) => type)).filter((type) => !PLAIN.has(type) && !type.endsWith('[]'))
	const key = strange.join()
	if (!key || learnt === key) return false
	learnt = key
	readLabels((await api('GET', 'openapi.json')).data)
	return true
}

const known = new Map()
const LONGEST = 40
const MOST = 60

export function learnValues({ columns, records }) {
	for (const { name, type } of columns) {
		if (!/^(text|varchar|bpchar)$/.test(type)) continue
		const values = new Set(records.map((record) => record[name]).filter((value) => value && value.length <= LONGEST))
		if (values.size > MOST) continue
		known.set(name, new Set([...(known.get(name) || []), ...values]))
	}
}

const alike = (column, name) => column === name || column.endsWith(`_${name}`) || name.endsWith(`_${column}`)

function suggestions(name) {
	const found = [...known].filter(([column]) => alike(column, name)).flatMap(([, values]) => [...values])
	return [...new Set(found)].sort()
}

// --- The field

function choice(values) {
	return make('select', { autocomplete: 'off' }, option('', '–'), ...values.map(([value, text]) => option(value, text)))
}

function control(metricId, { name, type, description }) {
	const enumerated = labels.get(`${metricId}.${name}`)
	if (enumerated) return choice(enumerated.map((label) => [label, label]))
	if (type === 'bool') return choice([['true', 'yes'], ['false', 'no']])
	const [kind, step] = KINDS[type] || ['text']
	const hint = type.endsWith('[]') ? 'a, b, …' : /default (.+)$/.exec(description)?.[1]
	return make('input', { type: kind, autocomplete: 'off', ...(step && { step }), ...(hint && kind !== 'date' && { placeholder: hint }) })
}

let lists = 0

function suggest(input, name) {
	const list = make('datalist', { id: `known-${++lists}` })
	input.setAttribute('list', list.id)
	input.addEventListener('focus', () => list.replaceChildren(...suggestions(name).map((value) => option(value))))
	return list
}

// Says its value, as text and empty when there is none, whenever that has changed.
export function field(metricId, parameter, value, changed) {
	const { name, type, description, required } = parameter
	const input = control(metricId, parameter)
	input.value = value || ''
	input.required = required
	input.onchange = () => input.reportValidity() && changed(input.value.trim())
	const free = input.type === 'text' && /^(text|varchar|bpchar)$/.test(type)
	return make('label', { className: 'field', title: description }, make('span', { textContent: words(name) }), input, ...(free ? [suggest(input, name)] : []))
}

const quoted = (text) => `"${text.trim().replace(/["\\]/g, '\\$&')}"`

// A field's text as the service reads it.
export function sent(value, type) {
	if (type === 'timestamptz') return `${value}Z`
	if (type.endsWith('[]') && !value.startsWith('{')) return `{${value.split(',').map(quoted)}}`
	return value
}
