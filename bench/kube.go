package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Bars of one gateway core and one agent core: so many requests per second,
// which is so much CPU per request.
const (
	keptRequestBar  = 1000 // µs: 1,000 per second
	freshRequestBar = 3333 // µs: 300 per second
	streamRateBar   = 0.80 // of direct
)

const podPath = "/api/v1/namespaces/default/pods/web"

// pod is an object of the usual size: what kubectl get pod reads.
var pod = `{"kind":"Pod","apiVersion":"v1","metadata":{"name":"web","namespace":"default","annotations":{"note":"` + strings.Repeat("x", 3000) +
	`"}},"spec":{"containers":[{"name":"web","image":"web"}]},"status":{"phase":"Running"}}`

// Headers by which a client tells the API server what the stream carries. They
// pass through the agent.
const (
	streamWay   = "X-Bench-Way"
	streamBytes = "X-Bench-Bytes"
)

// serveAPI answers for one pod, and does what exec and port-forward do with bytes:
// switch protocols, and move them.
func serveAPI(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Upgrade") != "" {
		serveAPIStream(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(pod)))
	io.WriteString(w, pod)
}

func serveAPIStream(w http.ResponseWriter, r *http.Request) {
	n, err := strconv.ParseInt(r.Header.Get(streamBytes), 10, 64)
	if err != nil {
		http.Error(w, "how many bytes?", http.StatusBadRequest)
		return
	}
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(stallWait))
	io.WriteString(rw, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n")
	if rw.Flush() != nil {
		return
	}
	if r.Header.Get(streamWay) == "down" {
		_ = sendBytes(conn, n) // the client counts
		return
	}
	if _, err := io.CopyN(io.Discard, rw, n); err == nil {
		conn.Write([]byte{1}) // all of it is here
	}
}

// sendBytes writes by 32 KiB, as kubelets do.
func sendBytes(w io.Writer, n int64) error {
	block := make([]byte, 32<<10)
	for n > 0 {
		m, err := w.Write(block[:min(n, int64(len(block)))])
		if n -= int64(m); err != nil {
			return err
		}
	}
	return nil
}

// stream opens exec or portforward and moves megabytes one way.
func (v visit) stream(sub, way string, mb int) side {
	return timed("rate", func(ctx context.Context) (float64, error) {
		config, err := v.tls()
		if err != nil {
			return 0, err
		}
		config.NextProtos = nil // kubectl names none for streams
		raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", v.addr)
		if err != nil {
			return 0, err
		}
		defer raw.Close()
		raw.SetDeadline(time.Now().Add(stallWait))
		conn := tls.Client(raw, config)
		return float64(mb), v.move(ctx, conn, sub, way, int64(mb)*1e6)
	})
}

func (v visit) move(ctx context.Context, conn *tls.Conn, sub, way string, n int64) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+v.host+podPath+"/"+sub, nil)
	if err != nil {
		return err
	}
	for name, value := range map[string]string{"Connection": "Upgrade", "Upgrade": "SPDY/3.1", streamWay: way, streamBytes: strconv.FormatInt(n, 10)} {
		req.Header.Set(name, value)
	}
	if err := req.Write(conn); err != nil {
		return err
	}
	r := bufio.NewReaderSize(conn, 32<<10)
	res, err := http.ReadResponse(r, req)
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusSwitchingProtocols {
		why, _ := io.ReadAll(io.LimitReader(res.Body, 4<<10))
		return fmt.Errorf("%s: %s", res.Status, why)
	}
	if way == "down" {
		_, err = io.CopyN(io.Discard, r, n)
		return err
	}
	if err := sendBytes(conn, n); err != nil {
		return err
	}
	_, err = r.ReadByte()
	return err
}

// kubeMeasures are requests and streams through gateway and agent to an API server.
func (w *web) kubeMeasures(z sizes) []comparison {
	through, direct := w.kubeThrough(), w.kubeDirect()
	requests := func(name, title, load string, bar float64) comparison {
		m := comparison{Measure: Measure{
			Name: "kube/" + name, Title: title, A: "HTTP/2 as kubectl speaks it, through Sallyport", B: "the same to the API server, a stub", Floor: true, Load: load,
			Quantities: []Quantity{{Key: "rate", Title: "requests", Unit: "/s", More: true}, gatewayCPU("request"), agentCPU("request")},
		}}
		m.Quantities[1].Bar, m.Quantities[2].Bar = bar, bar
		return m
	}
	kept := requests("kept", "Kubernetes requests, connections kept", fmt.Sprintf("%d times one pod of %d bytes, %d at a time on one connection", z.requests, len(pod), z.workers), keptRequestBar)
	kept.a = through.kept(z.requests, z.workers, func(s side) side { return w.counted(s, z.requests) })
	kept.b = direct.kept(z.requests, z.workers, uncounted)
	fresh := requests("new", "Kubernetes requests, each on a new connection", fmt.Sprintf("%d times one pod of %d bytes, %d at a time", z.sessions, len(pod), z.workers), freshRequestBar)
	fresh.a, fresh.b = w.counted(through.fresh(z.sessions, z.workers), z.sessions), direct.fresh(z.sessions, z.workers)
	out := []comparison{kept, fresh}
	for _, sub := range []struct{ name, path string }{{"exec", "exec"}, {"forward", "portforward"}} {
		if z.quick && sub.name != "exec" {
			continue // the same bytes
		}
		for _, way := range []struct{ name, title string }{{"up", "client to pod"}, {"down", "pod to client"}} {
			m := comparison{Measure: Measure{
				Name: "kube/" + sub.name + "-" + way.name, Title: "kubectl " + sub.path + " bytes, " + way.title, A: "Sallyport", B: "the API server alone, a stub, TLS",
				Load: fmt.Sprintf("%d MB on a connection of its own", z.megabytes), Quantities: bulkQuantities(),
			}}
			m.Quantities[0].Ratio = streamRateBar
			m.a = w.counted(through.stream(sub.path, way.name, z.megabytes), z.megabytes)
			m.b = direct.stream(sub.path, way.name, z.megabytes)
			out = append(out, m)
		}
	}
	return out
}
