// Package shaping is a reverse proxy on loopback that makes a fast local
// server look like one behind a network: it delays each request, limits
// the bytes per second of each connection and of all together, and counts
// requests and body bytes. It is made for benchmarks and tests, and light
// enough not to be what they measure: bodies go from socket to socket
// through the kernel.
package shaping
