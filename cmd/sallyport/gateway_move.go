package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/sallyport/sallyport/controlplane/client"
	"github.com/sallyport/sallyport/dataplane/gateway"
	"github.com/sallyport/sallyport/dataplane/handover"
	"github.com/sallyport/sallyport/dataplane/tunnel"
)

// hostPart is the gateway's standing in the cluster: its directory, and the
// reports to auth of who is here.
const hostPart = "gateway-host"

// inherit prepares the gateway for what another process gives it. Its loops
// stand still until the commit.
func (r *gatewayRole) inherit() (err error) {
	if r.heir, err = gateway.Inherit(r.config); err == nil {
		r.gateway = r.heir.Gateway()
		r.opened()
	}
	return err
}

// takers take the gateway over.
func (r *gatewayRole) takers() []handover.Taker {
	out := []handover.Taker{r.heir}
	if r.host != nil {
		out = append(out, r.hub.Taker(r.life), hostTaker{r.host})
	}
	return out
}

// early is what moves before connections stand still.
func (r *gatewayRole) early() []handover.Giver {
	if r.host == nil {
		return nil
	}
	return []handover.Giver{&hostGiver{r}}
}

// late is what moves while they do: the tunnels' giver wants the loops held, and
// lets go of what is theirs after them.
func (r *gatewayRole) late() []handover.Giver {
	out := []handover.Giver{r.gateway.Giver()}
	if r.hub != nil {
		out = append(out, r.hub.Giver())
	}
	return out
}

// left tells those who are connected to this process itself, after the commit.
func (r *gatewayRole) left() {
	if r.web != nil {
		go r.web.dismiss(r.life)
		go r.browsers.web.dismiss(r.life)
	}
	if r.jump != nil {
		r.jump.Leave()
	}
	go r.gateway.DismissInside(r.life)
}

// holds is what does not move, and ends by itself. Agents' control connections
// do not count: they are gone within two seconds.
func (r *gatewayRole) holds() map[string]int {
	if r.hub == nil {
		return nil
	}
	left, jumps, inside := r.hub.Remaining(), r.jump.Open(), r.gateway.Carried()
	return map[string]int{
		"carried streams": left.Carried, "connections inside WebSockets": inside, "web connections": int(r.web.open.Load()), "browsers at applications": r.browsers.open(), "jump connections": jumps,
		"connections whose TLS ends here": max(0, r.gateway.Serving()-left.Control-left.Carried-jumps-inside),
	}
}

// working is what of that people would miss at once: a drain waits for it. Not for
// connections that are kept for the next request, which would never end. What is
// inside a WebSocket counts as what it is: a relay, or one of these.
func (r *gatewayRole) working() map[string]int {
	if r.hub == nil {
		return nil
	}
	out := map[string]int{"web connections": r.web.working(), "browsers at applications": r.browsers.working(), "jump connections": r.jump.Open()}
	maps.DeleteFunc(out, func(_ string, n int) bool { return n == 0 })
	return out
}

// idle says that nobody is connected to this process itself any more.
func (r *gatewayRole) idle() bool {
	return r.gateway.Serving() == 0 && (r.hub == nil || r.hub.Remaining() == tunnel.Remaining{} && r.web.open.Load() == 0 && r.browsers.open() == 0)
}

// hostGiver is the part in the old process.
type hostGiver struct{ *gatewayRole }

// Name meets handover.Giver.
func (*hostGiver) Name() string { return hostPart }

// Copy has nothing to send: all of it is on disk.
func (*hostGiver) Copy(context.Context, handover.Writer) error { return nil }

// Freeze stops writing, and reporting: auth believes the newest reporter. Events
// wait.
func (g *hostGiver) Freeze(context.Context, handover.Writer) error {
	g.reports.end()
	if err := g.host.Hold(); err != nil {
		return err
	}
	_, err := g.spool.Yield()
	return err
}

// Thaw goes on with all of that.
func (g *hostGiver) Thaw() error {
	g.reports.begin(g.life, g.presence)
	ctx, cancel := context.WithTimeout(context.Background(), thawTime)
	defer cancel()
	err := g.spool.Return(ctx)
	if herr := g.host.Release(); herr != nil {
		err = errors.Join(err, fmt.Errorf("state of the gateway is not on disk: %w", herr))
	}
	return err
}

// Leave leaves it to the new process, which opens the spool when it runs.
func (g *hostGiver) Leave() {
	g.host.Leave()
	g.spool.Follow()
}

// hostTaker is the part in the new process.
type hostTaker struct{ host *client.Host }

// Name meets handover.Taker.
func (hostTaker) Name() string { return hostPart }

// Take refuses: nothing is sent.
func (hostTaker) Take(r handover.Record) error {
	closeFDs(r.FDs)
	return fmt.Errorf("a record of kind %d was not expected", r.Kind)
}

// Complete reads what the old process knew last.
func (t hostTaker) Complete(context.Context) error { return t.host.Take() }

// Start lets the host write.
func (t hostTaker) Start() { _ = t.host.Release() } // what fails is written again when it changes

// reports are those to auth, which can be stopped and begun again.
type reports struct {
	mu   sync.Mutex
	stop context.CancelFunc // nil while nobody reports
	done chan struct{}
}

func (r *reports) begin(ctx context.Context, p *client.Presence) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stop != nil {
		return
	}
	ctx, stop := context.WithCancel(ctx)
	r.stop, r.done = stop, make(chan struct{})
	go func() {
		defer close(r.done)
		_ = p.Run(ctx) // ends with ctx only
	}()
}

func (r *reports) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stop != nil {
		r.stop()
		<-r.done
		r.stop = nil
	}
}

// dismissEvery is how often web clients are said goodbye: one whose handshake ends
// late must be told too.
const dismissEvery = 100 * time.Millisecond

// dismiss says goodbye to web clients until ctx is done: HTTP/2 by GOAWAY, HTTP/1
// by closing what is idle and what has been answered. What runs goes on, and what
// was accepted is answered, whenever it asks: for HTTP/1 this is why the server is
// not shut down, which would drop a request that has just been read.
func (w *webServer) dismiss(ctx context.Context) {
	w.server.SetKeepAlivesEnabled(false)
	tick := time.NewTicker(dismissEvery)
	defer tick.Stop()
	for ctx.Err() == nil {
		_ = w.told.Shutdown(ctx) // not reached: it has no listener to close and no connection to wait for
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}
