package api

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/sallyport/sallyport"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
	"github.com/sallyport/sallyport/wire/sallyport/v1/sallyportv1connect"
)

func callerNamed(kind sallyport.IdentityKind, name string) Caller {
	return Caller{Identity: sallyport.Identity{Kind: kind, Name: name}}
}

// stalled is a request whose handler has not ended.
type stalled struct {
	rec  *httptest.ResponseRecorder
	done chan struct{}
}

// heldIn is a handler whose requests stay in until the end.
type heldIn struct {
	handler http.Handler
	in      atomic.Int32
	end     chan struct{}
}

func hold(b *bodies) *heldIn {
	h := &heldIn{end: make(chan struct{})}
	h.handler = b.weighed(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		h.in.Add(1)
		<-h.end
		h.in.Add(-1)
	}))
	return h
}

// call sends size bytes as somebody, and returns when the handler waits.
func (h *heldIn) call(t *testing.T, c Caller, procedure string, size int) *stalled {
	s := &stalled{rec: httptest.NewRecorder(), done: make(chan struct{})}
	r := httptest.NewRequest(http.MethodPost, procedure, bytes.NewReader(make([]byte, size)))
	r.Header.Set("Content-Type", "application/proto")
	go func() {
		defer close(s.done)
		h.handler.ServeHTTP(s.rec, r.WithContext(WithCaller(t.Context(), c)))
	}()
	synctest.Wait()
	return s
}

// TestBodies: a user with many connections, all of whose streams stalled, held
// 1.6 GB of auth's memory, and as often as he liked.
func TestBodies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBodies()
		h := hold(b)
		const size = 64 << 10
		own, ship := sallyportv1connect.AccessServiceWhoAmIProcedure, sallyportv1connect.HostServiceAppendEventsProcedure
		renew := sallyportv1connect.HostServiceRenewHostProcedure
		mallory := callerNamed(sallyport.KindUser, "mallory")
		for range bytesPerUser / size {
			h.call(t, mallory, own, size)
		}
		if n := h.in.Load(); n != bytesPerUser/size {
			t.Fatalf("%d are in", n)
		}
		late := h.call(t, mallory, own, size)
		if n := h.in.Load(); n != bytesPerUser/size {
			t.Errorf("one too many is in: %d", n)
		}
		for _, c := range []struct {
			caller    Caller
			procedure string
			size      int
		}{
			{callerNamed(sallyport.KindUser, "alice"), own, size},
			{callerNamed(sallyport.KindAgent, "mallory"), ship, size},
			{localAdminCaller(), sallyportv1connect.AdminServicePutDocumentProcedure, size},
			{Caller{}, sallyportv1connect.JoinServiceJoinProcedure, size},
			{mallory, own, 0},
		} {
			before := h.in.Load()
			h.call(t, c.caller, c.procedure, c.size)
			if h.in.Load() != before+1 {
				t.Errorf("%s of %s %s waits for mallory", c.procedure, c.caller.Identity.Kind, c.caller.Identity.Name)
			}
		}
		time.Sleep(unaryTimeout)
		synctest.Wait()
		<-late.done
		if late.rec.Code != http.StatusTooManyRequests || !strings.Contains(late.rec.Body.String(), "resource_exhausted") || !strings.Contains(late.rec.Body.String(), "bytes of requests") {
			t.Errorf("one too many: %d %s", late.rec.Code, late.rec.Body)
		}

		// All users together, and then all hosts, leave room for what ships events.
		for i := range bytesOfUsers / bytesPerUser {
			for range bytesPerUser / size {
				h.call(t, callerNamed(sallyport.KindUser, fmt.Sprint("m", i)), own, size)
			}
		}
		before := h.in.Load()
		late = h.call(t, callerNamed(sallyport.KindUser, "bob"), own, size)
		if h.in.Load() != before {
			t.Error("more users' bytes than all may have")
		}
		for i := range 2 * bytesOfHosts / bytesPerHost {
			for range bytesPerHost / (128 << 10) {
				h.call(t, callerNamed(sallyport.KindAgent, fmt.Sprint("h", i)), renew, 128<<10)
			}
		}
		if n := h.in.Load(); n != before+bytesOfHosts/(128<<10) {
			t.Errorf("%d hosts' requests are in", n-before)
		}
		before = h.in.Load()
		h.call(t, callerNamed(sallyport.KindAgent, "h0"), ship, 2<<20)
		if h.in.Load() != before+1 {
			t.Error("events wait for what is no event")
		}
		time.Sleep(unaryTimeout)
		synctest.Wait()
		if !strings.Contains(late.rec.Body.String(), "auth has too many") {
			t.Errorf("bob: %s", late.rec.Body)
		}
		close(h.end)
		synctest.Wait()
		if n := len(b.perCaller.callers); n != 0 || !b.users.TryAcquire(bytesOfUsers) || !b.hosts.TryAcquire(bytesOfHosts) || !b.shipped.TryAcquire(bytesOfEvents) {
			t.Errorf("all have ended: %d callers are still counted, or bytes", n)
		}
	})
}

// TestBodiesOfStreams: a stream's request is not counted for as long as the stream goes on.
func TestBodiesOfStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := hold(newBodies())
		const size = 128 << 10
		for range 2 * bytesPerHost / size {
			h.call(t, callerNamed(sallyport.KindAgent, "a"), sallyportv1connect.HostServiceWatchSnapshotProcedure, size)
		}
		if n := h.in.Load(); n != 2*bytesPerHost/size {
			t.Errorf("%d streams are open", n)
		}
		close(h.end)
		synctest.Wait()
	})
	services := sallyportv1.File_sallyport_v1_api_proto.Services()
	for i := range services.Len() {
		eachMethod(services.Get(i), func(procedure string, m protoreflect.MethodDescriptor) {
			if b := boundOf(procedure); b.stream != m.IsStreamingServer() || m.IsStreamingClient() {
				t.Errorf("%s: stream %v", procedure, b.stream)
			}
			if b := boundOf(procedure); strings.Contains(procedure, "HostService") && b.bytes > bytesPerHost || !strings.Contains(procedure, "HostService") && b.bytes > bytesPerUser {
				t.Errorf("%s: one request is more than a caller may have", procedure)
			}
		})
	}
}

func eachMethod(s protoreflect.ServiceDescriptor, see func(procedure string, m protoreflect.MethodDescriptor)) {
	for j := range s.Methods().Len() {
		m := s.Methods().Get(j)
		see("/"+string(s.FullName())+"/"+string(m.Name()), m)
	}
}

// TestWeight: what a request may take is known from its head.
func TestWeight(t *testing.T) {
	const most = 64 << 10
	for what, c := range map[string]struct {
		length   int64
		header   string
		encoding string
		want     int64
	}{
		"nothing":       {0, "", "", 0},
		"as it says":    {1000, "", "", 1000},
		"unknown":       {-1, "", "", most},
		"refused later": {1 << 30, "", "", most},
		"plain":         {1000, "Content-Encoding", "identity", 1000},
		"gzip":          {1000, "Content-Encoding", "gzip", most},
		"stream, gzip":  {1000, "Connect-Content-Encoding", "gzip", most},
		"gRPC, gzip":    {1000, "Grpc-Encoding", "gzip", most},
	} {
		r := httptest.NewRequest(http.MethodPost, sallyportv1connect.AccessServiceWhoAmIProcedure, nil)
		r.ContentLength = c.length
		if c.header != "" {
			r.Header.Set(c.header, c.encoding)
		}
		if got := weight(r); got != c.want {
			t.Errorf("%s: %d, want %d", what, got, c.want)
		}
	}
}

// TestBodiesAreWeighed: at the API's own door, those of a gateway's visitors as its own.
func TestBodiesAreWeighed(t *testing.T) {
	w := the()
	gateway := sallyport.Identity{Kind: sallyport.KindGateway, Name: "weighed", Cluster: cluster}
	user := callerNamed(sallyport.KindUser, "weighed")
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	for procedure, c := range map[string]struct {
		caller, as Caller
		most       int64
	}{
		sallyportv1connect.AccessServiceWhoAmIProcedure: {user, user, bytesPerUser},
		sallyportv1connect.PublicServiceLoginProcedure:  {Caller{Web: true, Via: gateway}, Caller{Identity: gateway}, bytesPerHost},
	} {
		leave, err := w.server.bodies.take(WithCaller(t.Context(), c.as), sallyportv1connect.HostServiceRenewHostProcedure, c.most)
		if err != nil {
			t.Fatal(err)
		}
		rec, r := httptest.NewRecorder(), httptest.NewRequest(http.MethodPost, procedure, strings.NewReader("x"))
		r.Header.Set("Content-Type", "application/proto")
		w.server.Handler(nil).ServeHTTP(rec, r.WithContext(WithCaller(gone, c.caller)))
		if !strings.Contains(rec.Body.String(), "bytes of requests under way") {
			t.Errorf("%s: one more came in: %s", procedure, rec.Body)
		}
		leave()
	}
}

// TestBodiesUnread: what nobody has read yet is bounded by connection, and for people
// that is little.
func TestBodiesUnread(t *testing.T) {
	w := the()
	_, user := w.user(t, nil, "access")
	_, agent := w.host(t, sallyport.KindAgent)
	for who, c := range map[string]struct {
		cert   *tls.Certificate
		want   uint32
		stream uint32 // one that waits is not to stop the others
	}{"user": {user, smallBuffer, smallBuffer}, "agent": {agent, 1 << 20, 1 << 18}} {
		l := w.listener(false)
		serveInBubble(t, l, func(t *testing.T, p *pipes) {
			conn := handshake(t, w, p, protocolAuth, c.cert)
			defer conn.Close()
			if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
				t.Fatal(err)
			}
			f := http2.NewFramer(conn, conn)
			if err := f.WriteSettings(); err != nil {
				t.Fatal(err)
			}
			all, each := uint32(1<<16-1), uint32(1<<16-1)     // RFC 9113, section 6.9.2
			conn.SetReadDeadline(time.Now().Add(time.Second)) // by then all has come
			for {
				frame, err := f.ReadFrame()
				if err != nil {
					if !os.IsTimeout(err) {
						t.Error(err)
					}
					break
				}
				switch m := frame.(type) {
				case *http2.SettingsFrame:
					if v, ok := m.Value(http2.SettingInitialWindowSize); ok {
						each = v
					}
				case *http2.WindowUpdateFrame:
					all += m.Increment
				}
			}
			if all > c.want || each > c.stream || all < c.want/2 {
				t.Errorf("%s: a connection may send %d bytes unread, a stream %d, want %d", who, all, each, c.want)
			}
		})
	}
}
