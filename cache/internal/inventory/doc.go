// Package inventory is what a cache's directory holds beside and around its
// files: references and artifacts, which files are there, what can go, and
// whether all of it is as it was kept. It knows what [disk] knows, and fetches
// nothing.
package inventory
