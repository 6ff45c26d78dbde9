// Where tiles go on a grid of columns and rows: no two overlap, nothing floats, and no hole is left.
// An item is {id, x, y, w, h, static}, as react-grid-layout has it.

const { ceil, max, min, round } = Math

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

const grow = {
	right(item, others, { columns }) {
		item.w = min(columns, ...others.filter((other) => level(item, other) && other.x >= item.x + item.w).map(({ x }) => x)) - item.x
	},
	left(item, others) {
		const edge = max(0, ...others.filter((other) => level(item, other) && other.x < item.x).map(({ x, w }) => x + w))
		Object.assign(item, { x: edge, w: item.x + item.w - edge })
	},
	down(item, others, { end, deepest }) {
		const below = others.filter((other) => beside(item, other) && other.y >= item.y + item.h)
		const edge = below[0] ? min(...below.map(({ y }) => y)) : end - item.y - item.h <= deepest ? end : item.y + item.h
		item.h = edge - item.y
	},
}

// Tiles grow into what no other takes; those at the bottom by a few rows only.
export function fill(items, columns, deepest = 8) {
	const done = items.map((item) => ({ ...item }))
	const edges = { columns, deepest, end: bottom(done) }
	for (const towards of [grow.right, grow.left, grow.down, grow.right]) {
		for (const item of sorted(done)) if (!item.static) towards(item, done, edges)
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
