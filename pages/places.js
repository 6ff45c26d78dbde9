// Where tiles go on a grid of columns and rows: no two overlap, nothing floats, and no hole is left.
// An item is {id, x, y, w, h, static}, as react-grid-layout has it.

const { ceil, max, min, round } = Math
const DEEPEST = 8 // rows that a tile grows by below which nothing is

const beside = (a, b) => a.id !== b.id && a.x < b.x + b.w && b.x < a.x + a.w // share a column
const level = (a, b) => a.id !== b.id && a.y < b.y + b.h && b.y < a.y + a.h // share a row

export const clamp = (low, value, high) => max(low, min(value, high))
export const sorted = (items) => [...items].sort((a, b) => a.y - b.y || a.x - b.x)
export const bottom = (items) => max(0, ...items.map(({ y, h }) => y + h))

// As in react-grid-layout, gaps close upwards.
export function compact(items) {
	const done = items.filter((item) => item.static)
	for (const item of items.filter((each) => !each.static)) {
		const place = { ...item, y: bottom(done.filter((other) => !other.static && beside(item, other))) }
		for (let hit; (hit = done.find((other) => beside(place, other) && level(place, other)));) place.y = hit.y + hit.h
		done.push(place)
	}
	return done
}

function widen(item, others, columns) {
	const row = others.filter((other) => level(item, other))
	const left = max(0, ...row.filter(({ x }) => x < item.x).map(({ x, w }) => x + w))
	const right = min(columns, ...row.filter(({ x }) => x > item.x).map(({ x }) => x))
	Object.assign(item, { x: left, w: right - left })
}

// To the top of the tile below that is farthest away; those that are nearer make room.
function deepen(item, others, end) {
	const under = others.filter((other) => beside(item, other) && other.y >= item.y + item.h)
	const topAt = (column) => min(...under.filter(({ x, w }) => x <= column && column < x + w).map(({ y }) => y))
	const known = Array.from({ length: item.w }, (_, n) => topAt(item.x + n)).filter(isFinite)
	const edge = known[0] === undefined ? end : max(...known)
	const grown = edge - item.y - item.h
	if (known[0] !== undefined || grown <= DEEPEST) item.h += grown
}

function push(items) {
	const done = []
	for (const item of sorted(items)) {
		item.y = max(item.y, bottom(done.filter((other) => beside(item, other))))
		done.push(item)
	}
}

// Tiles grow into what no other takes; those at the bottom by a few rows only.
export function fill(items, columns) {
	const done = items.map((item) => ({ ...item }))
	for (const item of sorted(done)) widen(item, done, columns)
	for (let pass = 0; pass < done.length; pass++) {
		const before = JSON.stringify(done)
		for (const item of sorted(done)) {
			deepen(item, done, bottom(done))
			push(done)
		}
		if (before === JSON.stringify(done)) break
	}
	return done
}

// Rows of as many as fit, of whole columns, the last row as full as the others.
export function rows(ids, { columns, most, y, h }) {
	const each = ceil(ids.length / ceil(ids.length / most))
	return ids.map((id, n) => {
		const [row, i] = [Math.floor(n / each), n % each]
		const share = columns / min(each, ids.length - row * each)
		return { id, x: round(i * share), y: y + row * h, w: round((i + 1) * share) - round(i * share), h }
	})
}

// What is held passes a neighbour when its leading edge is past the middle of it.
export function arrange(from, held) {
	const others = sorted(from).filter(({ id }) => id !== held.id)
	const edge = held.y > from.find(({ id }) => id === held.id).y ? held.y + held.h : held.y
	const index = others.findIndex((other) => beside(other, held) && other.y + other.h / 2 > edge)
	others.splice(index < 0 ? others.length : index, 0, held)
	return compact(others)
}

// The neighbour above (-1) or below (1), if there is one.
export function neighbour(items, item, dy) {
	return sorted(items).filter((other) => beside(other, item) && (other.y - item.y) * dy > 0).at(min(0, dy))
}
