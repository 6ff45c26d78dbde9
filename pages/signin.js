// Who looks at the page: somebody who signed in (OpenID Connect, authorization code with PKCE) or pasted a token.
// Tokens are in memory alone. After a reload the provider is asked again, for it has a session of its own.

import { useToken, whenRefused } from './api.js'
import { write } from './charts.js'
import { $ } from './dom.js'

const fail = (text) => { throw Error(text) }
const access = JSON.parse($('access').textContent) // null: everybody is let in
const { client_id, issuer, authorization_endpoint, token_endpoint, end_session_endpoint } = access ?? {}
const home = new URL('.', location).href // where the provider sends people back to: it has to know it
const isDown = client_id && !token_endpoint // the provider, when this page was made
const session = {} // of the provider's tokens, the last ones
let signedIn // called whenever there is another token

const TEXTS = {
	wanted: 'Sign in to see the numbers.',
	ended: 'Your sign-in has ended. Sign in again; what is shown stays until then.',
	refused: 'The service does not accept this sign-in, or not for reading. Ask for access, or sign in as somebody else.',
	down: 'The sign-in page cannot be reached at the moment. Try again in a while.',
	foreign: 'That sign-in was not begun in this tab, so it does not count. Sign in again.',
	late: 'That sign-in took too long or was used before. Sign in again.',
	plain: 'Signing in needs https: a browser has no cryptography for other pages.',
}

// The service decides; this is for what the page offers.
export const mayWrite = () => !access || access.scopes.every((scope) => session.scopes?.includes(scope))
export const whenSignedIn = (listener) => { signedIn = listener }

// --- Tokens

function claimsOf(token) {
	try {
		const [, payload] = token.replaceAll('-', '+').replaceAll('_', '/').split('.')
		return JSON.parse(atob(payload))
	} catch {
		return {}
	}
}

function take(token) {
	session.scopes = `${claimsOf(token).scope ?? ''}`.split(' ')
	useToken(token)
	$('signin').hidden = true
	show()
	signedIn?.()
}

// What may be changed is shown to whoever may change it.
function show() {
	document.documentElement.dataset.may = mayWrite() ? 'write' : 'read'
	$('signout').hidden = !session.id
}

function ask(text) {
	write($('entry'), text)
	$('signin').hidden = false
}

// Why: no token is there (wanted), or the service does not take it (refused).
export function askAgain(why) {
	if (!$('signin').hidden) return
	// The clock of a laptop that slept stood still, and nothing was renewed.
	if (Date.now() >= session.until) renew()
	else ask(TEXTS[isDown ? 'down' : why])
}

// --- Signing in

const base64url = (bytes) => btoa(String.fromCharCode(...bytes)).replaceAll('+', '-').replaceAll('/', '_').replaceAll('=', '')
const random = () => base64url(crypto.getRandomValues(new Uint8Array(32)))

function addressOf(endpoint, params) {
	const url = new URL(endpoint)
	for (const name in params) url.searchParams.set(name, params[name])
	return url
}

async function signIn(prompt) {
	if (isDown) return location.reload()
	if (!crypto.subtle) fail(TEXTS.plain)
	// A browser's own page about a server that is down would be in the place of the numbers.
	await fetch(token_endpoint, { mode: 'no-cors', signal: AbortSignal.timeout(5000) }).catch(() => fail(TEXTS.down))
	const [state, nonce, verifier] = [random(), random(), random()]
	const challenge = new Uint8Array(await crypto.subtle.digest('SHA-256', new TextEncoder().encode(verifier)))
	sessionStorage.setItem('signing-in', JSON.stringify({ state, nonce, verifier, where: location.href }))
	const pkce = { code_challenge: base64url(challenge), code_challenge_method: 'S256' }
	const scope = ['openid', ...access.scopes].join(' ')
	const asked = { response_type: 'code', client_id, redirect_uri: home, scope, state, nonce, ...pkce, ...prompt }
	location[prompt ? 'replace' : 'assign'](addressOf(authorization_endpoint, asked))
}

// What the provider sent along, and what it answers; address bar, history and storage know neither any more.
function takeAnswer() {
	const answer = Object.fromEntries(new URLSearchParams(location.search))
	const begun = JSON.parse(sessionStorage.getItem('signing-in') ?? '{}')
	sessionStorage.removeItem('signing-in')
	if (!answer.state || !(answer.code || answer.error)) return
	history.replaceState(null, '', begun.where ?? home)
	if (begun.state !== answer.state) fail(TEXTS.foreign)
	if (/_required$/.test(answer.error)) fail(TEXTS.wanted) // there is nobody whom the provider knows
	if (answer.error) fail(`The provider did not sign you in: ${answer.error_description || answer.error}.`)
	return { ...begun, code: answer.code }
}

async function fetchTokens(fields) {
	const body = new URLSearchParams({ client_id, ...fields })
	const answer = await fetch(token_endpoint, { method: 'POST', body, redirect: 'error', signal: AbortSignal.timeout(10000) })
		.catch(() => fail(TEXTS.down))
	const tokens = await answer.json().catch(() => ({}))
	if (answer.ok && tokens.access_token) return tokens
	if (answer.status >= 500) fail(TEXTS.down)
	if (tokens.error === 'invalid_grant') fail(TEXTS.late)
	fail(`The provider gave no token: ${tokens.error_description || tokens.error || answer.status}.`)
}

async function redeem({ code, verifier, nonce }) {
	const tokens = await fetchTokens({ grant_type: 'authorization_code', code, redirect_uri: home, code_verifier: verifier })
	const claims = claimsOf(tokens.id_token ?? '')
	// Its signature need not be checked: it came from the token endpoint itself (OpenID Connect Core 1.0, 3.1.3.7).
	if (claims.nonce !== nonce || claims.iss !== issuer || ![claims.aud].flat().includes(client_id)) fail(TEXTS.foreign)
	adopt(tokens)
}

function adopt({ access_token, refresh_token = session.refresh, id_token = session.id, expires_in = 3600 }) {
	const soon = expires_in * (refresh_token ? 750 : 1000)
	Object.assign(session, { refresh: refresh_token, id: id_token, until: Date.now() + expires_in * 1000 })
	renewIn(Math.min(soon, 2 ** 31 - 1)) // what a timer takes
	sessionStorage.setItem('signed-in', 'yes')
	take(access_token)
}

function renewIn(milliseconds) {
	clearTimeout(session.timer)
	session.timer = setTimeout(renew, milliseconds)
}

async function renew() {
	if (!session.refresh) return ask(TEXTS.ended)
	if (session.renewing) return
	session.renewing = true
	try {
		adopt(await fetchTokens({ grant_type: 'refresh_token', refresh_token: session.refresh }))
	} catch ({ message }) {
		if (message === TEXTS.down && Date.now() < session.until) renewIn(10000)
		else ask(TEXTS.ended)
	}
	session.renewing = false
}

// --- Signing out

// Cognito's endpoint wants the last two, all others know the first two (OpenID Connect RP-Initiated Logout 1.0).
function signOut() {
	sessionStorage.removeItem('signed-in')
	if (!end_session_endpoint) return location.reload()
	const asked = { id_token_hint: session.id, post_logout_redirect_uri: home, client_id, logout_uri: home }
	location.assign(addressOf(end_session_endpoint, asked))
}

// --- Buttons

// One try to sign in without a question after a reload; whether it works or not, no second one comes by itself.
async function resume() {
	const begun = takeAnswer()
	if (begun) return redeem(begun)
	const known = sessionStorage.getItem('signed-in')
	sessionStorage.removeItem('signed-in')
	if (!known || isDown) return
	await signIn({ prompt: 'none' })
	await new Promise(() => {}) // the page is about to go
}

const sayWhy = ({ message }) => ask(message)

function entered(event) {
	event.preventDefault()
	if (client_id) return signIn().catch(sayWhy)
	take($('token').value.trim())
	$('signin').reset()
}

write($('enter'), isDown ? 'Try again' : client_id ? 'Sign in' : 'Use token')
$('pasting').hidden = !!client_id
$('signin').onsubmit = entered
$('signout').onclick = signOut
// A page that comes back as it was left would show what a signed-out person may not see.
window.onpageshow = ({ persisted }) => { if (persisted) location.reload() }
whenRefused(askAgain)
show()
if (client_id) await resume().catch(sayWhy)
