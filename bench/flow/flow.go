// Package flow makes the traffic that relays are measured with: the servers
// behind a relay and the clients before it. Both run as processes of their own,
// so that neither costs the relay's core anything.
//
//	client ──preface──▶ relay ──▶ sink    one byte back, then takes all and counts it
//	                              echo    gives back all, the preface too
//	                              one     one byte back
//	                              source  gives for as long as the client takes
//
// The preface is a ClientHello where the relay routes by it, else one byte: a
// server answers to whatever comes first, so a relay that waits for the
// server's first byte gets it.
package flow

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"time"
)

// ErrSystem: what is measured here is read from Linux.
var ErrSystem = errors.New("traffic is only made and measured on linux")

// Backends are the addresses of the servers.
type Backends struct {
	Sink   string `json:"sink"`
	Echo   string `json:"echo"`
	One    string `json:"one"`
	Source string `json:"source"`
	Count  string `json:"count"` // tells what the sink has taken, and a time in nanoseconds: eight bytes each, big-endian
}

// Names of the servers, as a hello asks for them.
const (
	SinkName   = "sink.bench.test"
	EchoName   = "echo.bench.test"
	OneName    = "one.bench.test"
	SourceName = "source.bench.test"
)

// Routes are the names with their addresses, in one order.
func (b Backends) Routes() []Route {
	return []Route{{SinkName, b.Sink}, {EchoName, b.Echo}, {OneName, b.One}, {SourceName, b.Source}}
}

// Route is a name and where it leads.
type Route struct{ Name, Address string }

// Kind is what clients do.
type Kind string

// The kinds of jobs.
const (
	Up      Kind = "up"      // streams that send
	Down    Kind = "down"    // streams that receive
	Connect Kind = "connect" // connections, each until the server's first byte
	Ping    Kind = "ping"    // 64 bytes there and back
	Idle    Kind = "idle"    // connections that do nothing
)

// Job is one sample.
type Job struct {
	Kind    Kind          `json:"kind"`
	To      Backends      `json:"to"` // where clients connect: the relay's address for each server
	Hello   bool          `json:"hello"`
	TLS     *TLS          `json:"tls,omitempty"` // clients speak TLS; then Hello says nothing
	Names   Backends      `json:"names"`         // what clients ask for; the constants' names where empty
	Count   string        `json:"count"`         // the server's own, never through a relay
	Conns   int           `json:"conns"`
	Rate    float64       `json:"rate"`    // pings per second, all together; 0: one after the other
	Beside  float64       `json:"beside"`  // bytes per second that a stream sends meanwhile
	Held    int           `json:"held"`    // connections that are held open meanwhile, doing nothing
	Sources int           `json:"sources"` // addresses that clients come from, 127.0.0.2 on; 0: the system's choice
	Warm    time.Duration `json:"warm"`
	Window  time.Duration `json:"window"` // what is measured, after Warm
}

// TLS is what clients of a tunnel speak, end to end: version 1.3 with a
// certificate, and without resumption. They do not check the server: what is
// measured is behind them.
type TLS struct {
	Cert string `json:"cert"` // files
	Key  string `json:"key"`
}

// server is one of the servers, as clients see it.
type server struct {
	name, addr string
	answer     int // bytes that it gives to the preface; -1: as many as the preface has
}

func (j Job) server(kind string) server {
	name := func(given, usual string) string {
		if given != "" {
			return given
		}
		return usual
	}
	switch kind {
	case SinkName:
		return server{name(j.Names.Sink, SinkName), j.To.Sink, 1}
	case SourceName:
		return server{name(j.Names.Source, SourceName), j.To.Source, 0}
	case OneName:
		return server{name(j.Names.One, OneName), j.To.One, 1}
	}
	return server{name(j.Names.Echo, EchoName), j.To.Echo, -1}
}

// Result is what one job found. CPU and Grown are of the processes watched.
type Result struct {
	Seconds   float64                  `json:"seconds"`
	Units     float64                  `json:"units"` // bytes, connections or round trips, within Seconds
	Latencies Latencies                `json:"latencies"`
	Missed    int                      `json:"missed"` // pings that could not be sent in time
	Failed    int                      `json:"failed"` // connections that ended before the server's first byte
	Others    float64                  `json:"others"` // share of the relay's core that went to neither it nor idleness
	CPU       map[string]time.Duration `json:"cpu"`
	Grown     map[string]Footprint     `json:"grown"` // by Idle's connections
}

// Latencies are in microseconds.
type Latencies struct{ P50, P90, P99, Max float64 }

// Footprint is what a process holds.
type Footprint struct {
	RSS   float64 `json:"rss"` // bytes
	FDs   float64 `json:"fds"`
	Pipes float64 `json:"pipes"` // of them
}

// Meter reads the processes that are measured, by name.
type Meter interface {
	CPU() (map[string]time.Duration, error)
	Core() (busy, whole time.Duration) // of the core that the processes run on
	Held() (map[string]Footprint, error)
}

// check refuses what cannot be meant.
func (j Job) check() error {
	const most = 20000
	switch {
	case j.Conns < 1 || j.Conns > most || j.Held < 0 || j.Held > most:
		return fmt.Errorf("%d connections, %d held", j.Conns, j.Held)
	case j.Window <= 0 || j.Window > time.Hour || j.Warm < 0 || j.Warm > time.Hour:
		return fmt.Errorf("a window of %s after %s", j.Window, j.Warm)
	case j.Rate < 0 || j.Beside < 0 || j.Sources < 0 || j.Sources > 250:
		return errors.New("a negative rate, or too many sources")
	}
	return nil
}

// preface is what a client sends first.
func (j Job) preface(name string) ([]byte, error) {
	if !j.Hello || j.TLS != nil {
		return []byte{0}, nil
	}
	return HelloFor(name)
}

// HelloFor returns the ClientHello that Go's client sends for a name, with
// ALPN h2 and http/1.1 as a browser offers.
func HelloFor(name string) ([]byte, error) {
	client, server := net.Pipe()
	defer server.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer client.Close()
		_ = tls.Client(client, &tls.Config{ServerName: name, NextProtos: []string{"h2", "http/1.1"}}).Handshake() // ends when the pipe closes
	}()
	defer func() { server.Close(); <-done }()
	head := make([]byte, 5) // RFC 8446, section 5.1
	if _, err := io.ReadFull(server, head); err != nil {
		return nil, err
	}
	body := make([]byte, int(head[3])<<8|int(head[4]))
	if _, err := io.ReadFull(server, body); err != nil {
		return nil, err
	}
	return append(head, body...), nil
}

// latencies of at least one duration, by the nearest rank.
func latencies(all []time.Duration) Latencies {
	if len(all) == 0 {
		return Latencies{}
	}
	slices.Sort(all)
	at := func(share float64) float64 {
		i := min(len(all)-1, max(0, int(share*float64(len(all))+0.999999)-1))
		return float64(all[i].Nanoseconds()) / 1000
	}
	return Latencies{P50: at(0.50), P90: at(0.90), P99: at(0.99), Max: at(1)}
}

// spent is what processes have used between two readings.
func spent(before, after map[string]time.Duration) map[string]time.Duration {
	out := map[string]time.Duration{}
	for name, d := range after {
		out[name] = d - before[name]
	}
	return out
}
