//go:build unix

package fuzz

import (
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/alpn"
	"github.com/sallyport/sallyport/dataplane/preamble"
)

// BenchmarkBorders runs each border alone, over the flights of real clients, and
// reports how many it reads in a second of CPU time. 100,000 is what a flood of
// strangers must not get below.
func BenchmarkBorders(b *testing.B) {
	var flights, hellos [][]byte
	for _, f := range clientFlights(b) {
		flights = append(flights, f)
	}
	for _, h := range clientHellos(b) {
		hellos = append(hellos, h)
	}
	var cut [][]byte
	for _, h := range hellos {
		cut = append(cut, cutAt(messageOf(h), 16))
	}
	table, err := alpn.NewTable("gw.test", []alpn.Match{{SNI: []string{parrotName}, ALPN: []string{"h2"}}, {SNI: []string{"*"}}})
	if err != nil {
		b.Fatal(err)
	}
	var hello alpn.Hello
	four := preamble.AppendProxyV2(nil, netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("192.0.2.2:2"))
	borders := []struct {
		name   string
		inputs [][]byte
		read   func([]byte)
	}{
		{"probe", flights, func(in []byte) { alpn.Probe(in) }},
		{"hello", hellos, func(in []byte) { _, _ = hello.Parse(in) }},
		{"hello, records of 16", cut, func(in []byte) { _, _ = hello.Parse(in) }},
		{"probe, hello and route", hellos, func(in []byte) {
			alpn.Probe(in)
			if need, err := hello.Parse(in); need == 0 && err == nil {
				table.Route(&hello)
			}
		}},
		{"proxy", [][]byte{four, []byte("PROXY TCP4 192.0.2.1 198.51.100.1 8080 443\r\n")}, func(in []byte) { _, _, _ = preamble.ParseProxy(in) }},
		{"postgres", flights, func(in []byte) { _, _, _ = preamble.ParsePostgres(in) }},
		{"rdp", [][]byte{[]byte("\x03\x00\x00\x2c\x27\xe0\x00\x00\x00\x00\x00Cookie: mstshash=eltons\r\n\x01\x00\x08\x00\x00\x00\x00\x00")}, func(in []byte) { _, _, _ = preamble.ParseRDP(in) }},
		{"http", [][]byte{[]byte("GET /a?b=c HTTP/1.1\r\nHost: gw.test\r\nUser-Agent: curl/7.88.1\r\nAccept: */*\r\n\r\n")}, func(in []byte) { _, _, _ = preamble.ParseHTTP(in) }},
	}
	for _, border := range borders {
		b.Run(border.name, func(b *testing.B) {
			b.ReportAllocs()
			before := cpuTime(b)
			for i := 0; b.Loop(); i++ {
				border.read(border.inputs[i%len(border.inputs)])
			}
			b.ReportMetric(float64(b.N)/(cpuTime(b)-before).Seconds(), "reads/cpu-s")
		})
	}
}

// cpuTime is what this process has used: on a busy machine the clock says less
// about the code.
func cpuTime(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
