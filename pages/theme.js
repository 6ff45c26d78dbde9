// Before the first paint, or a dark page would flash in white.
document.documentElement.dataset.theme = new URLSearchParams(location.search).get('theme') || ''
