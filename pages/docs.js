// Swagger UI, with the document read again whenever there is a token, or none any more: it shows what its reader may see.

const url = new URL('../openapi.json', import.meta.url).href // below whatever prefix a proxy strips
let token = ''

const remember = (original, system) => (payload) => {
	token = payload.bearer ? payload.bearer.value : ''
	const done = original(payload)
	system.specActions.download(url)
	return done
}

function withToken(request) {
	if (request.loadSpec && token) request.headers = { ...request.headers, Authorization: `Bearer ${token}` }
	return request
}

// Metrics by their titles; those without one, named by their ids, come last. Everything else as the document has it.
function byTitle(one, other) {
	const [a, b] = [one, other].map((operation) => operation.getIn(['operation', 'summary']))
	const isId = (title) => /^(Metric )?[\da-f]{8}(-|$)/.test(title)
	if (one.getIn(['operation', 'tags', 0]) !== 'metrics') return 0
	return isId(a) - isId(b) || a.localeCompare(b)
}

// What would make the page hard to use without a mouse or eyes: links within buttons, levels of headings left out, and a
// choice without a label among servers of which there is one.
const components = {
	DeepLink: (_, { React }) => ({ text }) => React.createElement('span', null, text),
	operations: (Original, { React }) => (props) =>
		React.createElement('section', null, React.createElement('h2', { className: 'unseen' }, 'Operations'), React.createElement(Original, props)),
	ServersContainer: () => () => null,
}

const dark = matchMedia('(prefers-color-scheme: dark)')
dark.onchange = () => document.documentElement.classList.toggle('dark-mode', dark.matches)
dark.onchange()

window.SwaggerUIBundle({
	url,
	dom_id: '#ui',
	deepLinking: true,
	docExpansion: 'none',
	defaultModelsExpandDepth: 0,
	operationsSorter: byTitle,
	requestInterceptor: withToken,
	plugins: [{ wrapComponents: components, statePlugins: { auth: { wrapActions: { authorize: remember, logout: remember } } } }],
})
