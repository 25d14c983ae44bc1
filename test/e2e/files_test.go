package e2e

import (
	"bytes"
	"crypto/rand"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// cutter is a way to the gateway on which the first connections break.
type cutter struct {
	net.Listener
	to string

	mu   sync.Mutex
	cuts []int64 // after how many bytes each connection breaks, either way
	done int     // connections that were cut
	all  sync.WaitGroup
}

func newCutter(t *testing.T, to string) *cutter {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cutter{Listener: l, to: to}
	c.all.Go(c.accept)
	t.Cleanup(func() { l.Close(); c.all.Wait() })
	return c
}

func (c *cutter) set(cuts ...int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cuts, c.done = cuts, 0
}

func (c *cutter) accept() {
	for {
		conn, err := c.Accept()
		if err != nil {
			return
		}
		far, err := net.Dial("tcp", c.to)
		if err != nil {
			conn.Close()
			continue
		}
		c.mu.Lock()
		limit := int64(-1)
		if len(c.cuts) > 0 {
			limit, c.cuts = c.cuts[0], c.cuts[1:]
		}
		c.mu.Unlock()
		cut := sync.OnceFunc(func() { conn.Close(); far.Close() })
		for _, way := range [][2]net.Conn{{far, conn}, {conn, far}} {
			c.all.Go(func() { c.carry(way[0], way[1], limit, cut) })
		}
	}
}

func (c *cutter) carry(to, from net.Conn, limit int64, cut func()) {
	defer cut()
	if limit < 0 {
		io.Copy(to, from)
		return
	}
	if n, _ := io.CopyN(to, from, limit); n == limit {
		c.mu.Lock()
		c.done++
		c.mu.Unlock()
	}
}

// testResume: a transfer whose connection breaks goes on where it was, both ways.
func testResume(t *testing.T, d *demo, p *person) {
	c := newCutter(t, d.Proxy)
	far := newPerson(t)
	p.moveTo(far, c.Addr().String())
	here, there := t.TempDir(), t.TempDir()
	blob := make([]byte, 40<<20+5)
	rand.Read(blob)
	file := filepath.Join(here, "file")
	if err := os.WriteFile(file, blob, 0o600); err != nil {
		t.Fatal(err)
	}
	node := login(t) + "@" + d.name("node")
	for _, argv := range [][]string{{file, node + ":" + there + "/up"}, {node + ":" + there + "/up", filepath.Join(here, "down")}} {
		c.set(9<<20, 1<<10, 13<<20)
		far.run("sally", append([]string{"scp"}, argv...)...)
		c.mu.Lock()
		if c.done < 2 {
			t.Errorf("%q: %d connections were cut, so nothing was tested", argv, c.done)
		}
		c.mu.Unlock()
	}
	for _, name := range []string{filepath.Join(there, "up"), filepath.Join(here, "down")} {
		if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, blob) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
	c.set(9 << 20)
	if r := far.try("", "sally", "scp", "--no-resume", file, node+":"+there+"/no"); r.code != 1 || !strings.HasPrefix(r.stderr, "ERROR: ") {
		t.Errorf("--no-resume: %+v", r)
	}
}

// testForwards: each kind of forward of sally ssh carries a request of HTTP.
func testForwards(t *testing.T, d *demo, p *person) {
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "the page") }))
	t.Cleanup(web.Close)
	node, addr := login(t)+"@"+d.name("node"), web.Listener.Addr().String()
	const on = `on (127\.0\.0\.1:\d+)`
	get := func(what, address string, via *url.URL) {
		t.Helper()
		client := &http.Client{Timeout: runWait, Transport: &http.Transport{Proxy: http.ProxyURL(via), DisableKeepAlives: true}}
		resp, err := client.Get("http://" + address)
		if err != nil {
			t.Errorf("%s: %v", what, err)
			return
		}
		defer resp.Body.Close()
		if b, err := io.ReadAll(resp.Body); string(b) != "the page" {
			t.Errorf("%s: %q, %v", what, b, err)
		}
	}
	get("-L", p.listens(t, on, "ssh", "-N", "-L", "127.0.0.1:0:"+addr, node), nil)
	// The node is this machine. Which of its addresses it listens on is its own to say.
	get("-R", "127.0.0.1:"+p.listens(t, `port (\d+) of the node`, "ssh", "-N", "-R", "127.0.0.1:0:"+addr, node), nil)
	get("-D", addr, &url.URL{Scheme: "socks5", Host: p.listens(t, on, "ssh", "-N", "-D", "127.0.0.1:0", node)})
	get("-D by name", "localhost:"+strings.Split(addr, ":")[1], &url.URL{Scheme: "socks5h", Host: p.listens(t, on, "ssh", "-N", "-D", "127.0.0.1:0", node)})
}
