// A parameter's field, by its type.

import { api } from './api.js'
import { words } from './charts.js'

const KINDS = {
	date: ['date'], timestamp: ['datetime-local'], timestamptz: ['datetime-local'], time: ['time'],
	int2: ['number', '1'], int4: ['number', '1'], int8: ['number', '1'],
	numeric: ['number', 'any'], float4: ['number', 'any'], float8: ['number', 'any'],
}
const TEXT = /^(text|varchar|bpchar)$/
const PLAIN = /^(bool|text|varchar|bpchar|uuid|interval|jsonb?|timetz)$/

const make = (tag, attributes, ...children) => {
	const node = Object.assign(document.createElement(tag), attributes)
	node.append(...children)
	return node
}
const option = (value, text = value) => make('option', { value, textContent: text })

// --- What can be chosen: an enum's labels, of which only the document knows, and values that results have shown

const labels = new Map()

function readLabels({ paths }) {
	for (const [path, { get }] of Object.entries(paths)) {
		const enums = (get?.parameters || []).filter(({ schema }) => schema?.enum)
		for (const { name, schema } of enums) labels.set(`${path.slice('/metrics/'.length)}.${name}`, schema.enum)
	}
}

const isStrange = ({ type }) => !(type in KINDS) && !PLAIN.test(type) && !type.endsWith('[]')

// Resolves when the labels of these metrics' enums are known, to whether any are new.
export async function learnEnums(metrics) {
	const keysOf = ({ id, parameters }) => parameters.filter(isStrange).map(({ name }) => `${id}.${name}`)
	const fresh = metrics.flatMap(keysOf).filter((key) => !labels.has(key))
	for (const key of fresh) labels.set(key, null) // asked for once
	if (fresh.length) readLabels((await api('GET', 'openapi.json')).data)
	return fresh.length > 0
}

const known = new Map() // by column
const LONGEST = 40 // characters
const MOST = 60 // values of one result, beyond which they are no choice
const KEPT = 200 // values of a column, the newest

export function learnValues({ columns, records }) {
	for (const { name } of columns.filter(({ type }) => TEXT.test(type))) {
		const values = new Set(records.map((record) => record[name]).filter((value) => value && value.length <= LONGEST))
		if (values.size <= MOST) known.set(name, [...new Set([...values, ...(known.get(name) || [])])].slice(0, KEPT))
	}
}

const alike = (column, name) => column === name || column.endsWith(`_${name}`) || name.endsWith(`_${column}`)

function suggestions(name) {
	const found = [...known].filter(([column]) => alike(column, name)).flatMap(([, values]) => values)
	return [...new Set(found)].sort()
}

// --- The field

function choice(values) {
	const options = values.map(([value, text]) => option(value, text))
	return make('select', { autocomplete: 'off' }, option('', '–'), ...options)
}

function control(metricId, { name, type, description }) {
	const enumerated = labels.get(`${metricId}.${name}`)
	if (enumerated) return choice(enumerated.map((label) => [label, label]))
	if (type === 'bool') return choice([['true', 'yes'], ['false', 'no']])
	const [kind, step] = KINDS[type] || ['text']
	const placeholder = type.endsWith('[]') ? 'a, b, …' : /default (.+)$/.exec(description)?.[1] || ''
	return make('input', { type: kind, step: step || '', placeholder, autocomplete: 'off' })
}

let count = 0

function suggest(input, name) {
	const list = make('datalist', { id: `known-${++count}` })
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
	const lists = input.type === 'text' && TEXT.test(type) ? [suggest(input, name)] : []
	const says = make('span', { textContent: words(name) })
	return make('label', { className: 'field', title: description }, says, input, ...lists)
}

const quoted = (text) => `"${text.trim().replace(/["\\]/g, '\\$&')}"`

// A field's text as the service reads it.
export function sent(value, type) {
	if (type === 'timestamptz') return `${value}Z`
	if (type.endsWith('[]') && !value.startsWith('{')) return `{${value.split(',').map(quoted)}}`
	return value
}
