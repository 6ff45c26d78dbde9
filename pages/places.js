// Where tiles go on a grid of columns and rows: no two overlap, nothing floats, and no hole is left.
// An item is {id, x, y, w, h}, as react-grid-layout has it.

const { max, min } = Math

const beside = (a, b) => a.id !== b.id && a.x < b.x + b.w && b.x < a.x + a.w // share a column
const level = (a, b) => a.id !== b.id && a.y < b.y + b.h && b.y < a.y + a.h // share a row

export const clamp = (low, value, high) => max(low, min(value, high))
export const sorted = (items) => [...items].sort((a, b) => a.y - b.y || a.x - b.x)
export const bottom = (items) => max(0, ...items.map(({ y, h }) => y + h))

// As in react-grid-layout, gaps close upwards.
export function compact(items) {
	const done = []
	for (const item of sorted(items)) done.push({ ...item, y: bottom(done.filter((other) => beside(item, other))) })
	return done
}

function widen(item, others, columns) {
	const row = others.filter((other) => level(item, other))
	const left = max(0, ...row.filter(({ x }) => x < item.x).map(({ x, w }) => x + w))
	const right = min(columns, ...row.filter(({ x }) => x > item.x).map(({ x }) => x))
	Object.assign(item, { x: left, w: right - left })
}

// To the top of the tile below that is farthest away; those that are nearer make room.
function deepen(item, others) {
	const under = others.filter((other) => beside(item, other) && other.y > item.y)
	const topAt = (column) => min(...under.filter(({ x, w }) => x <= column && column < x + w).map(({ y }) => y))
	const tops = Array.from({ length: item.w }, (_, n) => topAt(item.x + n)).filter(isFinite)
	item.h = max(item.h, max(...tops) - item.y)
}

// Tiles grow into what no other takes; those at the bottom stay as deep as they are.
export function fill(items, columns) {
	let done = compact(items)
	for (const item of done) widen(item, done, columns)
	for (let pass = 0; pass < items.length; pass++) {
		const before = JSON.stringify(done)
		for (const { id } of done) {
			deepen(done.find((item) => item.id === id), done)
			done = compact(done)
		}
		if (before === JSON.stringify(done)) break
	}
	return done
}

// What is held goes before what begins at its row or below.
export function arrange(from, held) {
	const others = from.filter(({ id }) => id !== held.id)
	return compact([...others, { ...held, y: held.y - 0.5 }])
}

// The row beyond the neighbour above (-1) or below (1), or its own.
export function rowBeyond(items, item, dy) {
	const neighbours = sorted(items).filter((other) => beside(other, item) && (other.y - item.y) * dy > 0)
	const next = neighbours.at(min(0, dy)) ?? item
	return dy > 0 && next !== item ? next.y + 1 : next.y
}
