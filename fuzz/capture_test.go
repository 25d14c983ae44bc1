package fuzz

import (
	"bytes"
	"context"
	"encoding/binary"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
)

var capturing = flag.Bool("capture", false, "run the real clients that are on the PATH and keep what they send first")

// flightDir has what real clients send first, one file each, named after the
// client, its version and what it was asked for.
const flightDir = "testdata/first"

// quiet is how long a client that is captured may pause within a flight.
const quiet = time.Second

// recording is one client to capture. In its arguments ADDR, HOST and PORT stand
// for the server, which talks takes the part of: it returns the flight to keep.
type recording struct {
	name    string
	version []string // prints the version
	run     []string
	env     []string
	talk    func(s *server) []byte
}

var recordings = []recording{
	{"tls13", openSSL, []string{"openssl", "s_client", "-connect", "ADDR", "-servername", "orders.db.gw.test", "-alpn", "sallyport-db/1,postgresql"}, nil, first},
	{"tls12", openSSL, []string{"openssl", "s_client", "-connect", "ADDR", "-servername", "shop.example.com", "-alpn", "h2,http/1.1", "-tls1_2"}, nil, first},
	{"nameless", openSSL, []string{"openssl", "s_client", "-connect", "ADDR", "-noservername"}, nil, first},
	{"many", openSSL, []string{"openssl", "s_client", "-connect", "ADDR", "-servername", "shop.example.com", "-groups", "P-256:P-384:P-521:X25519:X448", "-status", "-serverinfo", "18,50", "-max_protocol", "TLSv1.3", "-alpn", "imap"}, nil, first},
	{"https", curl, []string{"curl", "-sk", "--resolve", "shop.example.com:PORT:HOST", "https://shop.example.com:PORT/"}, nil, first},
	{"http", curl, []string{"curl", "-s", "http://ADDR/a?b=c"}, nil, first},
	{"http-put", curl, []string{"curl", "-s", "-T", "capture_test.go", "http://ADDR/"}, nil, first},
	{"h2c", curl, []string{"curl", "-s", "--http2-prior-knowledge", "http://ADDR/"}, nil, first},
	{"proxy-v1", curl, []string{"curl", "-sk", "--haproxy-protocol", "https://ADDR/"}, nil, first},
	{"https", []string{"wget", "--version"}, []string{"wget", "-q", "-T1", "-t1", "--no-check-certificate", "-O/dev/null", "https://localhost:PORT/"}, nil, first},
	{"https", []string{"gnutls-cli", "--version"}, []string{"gnutls-cli", "--insecure", "--sni-hostname", "shop.example.com", "--alpn", "h2", "-p", "PORT", "HOST"}, nil, first},
	{"https", []string{"node", "--version"}, []string{"node", "-e", "require('tls').connect({host:'HOST',port:PORT,servername:'shop.example.com',ALPNProtocols:['h2','http/1.1']}).on('error',()=>{})"}, nil, first},
	{"https", []string{"java", "-version"}, []string{"keytool", "-printcert", "-sslserver", "localhost:PORT"}, nil, first},
	{"ls-remote", []string{"git", "--version"}, []string{"git", "-c", "http.sslVerify=false", "ls-remote", "https://localhost:PORT/x"}, nil, first},
	{"banner", []string{"ssh", "-V"}, []string{"ssh", "-p", "PORT", "-oBatchMode=yes", "-oUserKnownHostsFile=/dev/null", "HOST"}, nil, first},
	{"sslrequest", psql, []string{"psql", "host=HOST port=PORT sslmode=require"}, nil, first},
	{"hello", psql, []string{"psql", "host=orders.db.gw.test hostaddr=HOST port=PORT sslmode=require"}, nil, afterSSLRequest},
	{"startup", psql, []string{"psql", "host=HOST port=PORT sslmode=disable user=alice dbname=orders application_name=app"}, nil, first},
	{"cancel", psql, []string{"psql", "host=HOST port=PORT sslmode=disable user=alice", "-c", "select pg_sleep(9)"}, nil, cancelled},
	{"hello", []string{"mariadb", "--version"}, []string{"mariadb", "-hHOST", "-PPORT", "-ualice", "--ssl"}, nil, afterGreeting},
	{"proxy-v1", haproxy, []string{"haproxy", "-f", "CONFIG"}, []string{"send-proxy"}, throughProxy},
	{"proxy-v2", haproxy, []string{"haproxy", "-f", "CONFIG"}, []string{"send-proxy-v2"}, throughProxy},
	{"proxy-v2-tlvs", haproxy, []string{"haproxy", "-f", "CONFIG"}, []string{"send-proxy-v2 proxy-v2-options crc32c,unique-id,ssl,cert-cn"}, throughProxy},
	{"proxy-v2-local", haproxy, []string{"haproxy", "-f", "CONFIG"}, []string{"send-proxy-v2 check check-send-proxy inter 1s"}, first},
	{"request", []string{"rdesktop"}, []string{"xvfb-run", "-a", "rdesktop", "-u", "alice", "ADDR"}, nil, first},
	{"cookie", freeRDP, append(freeRDPTo, "/u:alice"), nil, first},
	{"standard", freeRDP, append(freeRDPTo, "/u:alice", "/sec:rdp"), nil, first},
	{"token", freeRDP, append(freeRDPTo, "/u:alice", "/load-balance-info:tsv://MS Terminal Services Plugin.1.Sessions"), nil, first},
}

var (
	openSSL = []string{"openssl", "version"}
	curl    = []string{"curl", "--version"}
	psql    = []string{"psql", "--version"}
	haproxy = []string{"haproxy", "-v"}

	freeRDP   = []string{"xvfb-run", "-a", "xfreerdp", "/version"} // not without a display
	freeRDPTo = slices.Clip([]string{"xvfb-run", "-a", "xfreerdp", "/v:ADDR", "/p:x", "/cert:ignore"})
)

// server plays the other side of a client.
type server struct {
	t    *testing.T
	l    net.Listener
	cmd  *exec.Cmd
	port string // of haproxy's frontend
}

func TestCapture(t *testing.T) {
	if !*capturing {
		t.Skip("captures real clients with -capture only")
	}
	if err := os.MkdirAll(flightDir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, r := range recordings {
		t.Run(program(r.run)+"-"+r.name, func(t *testing.T) {
			for _, program := range []string{r.version[0], r.run[0], program(r.version), program(r.run)} {
				if _, err := exec.LookPath(program); err != nil {
					t.Skipf("%s is not on the PATH", program)
				}
			}
			flight := r.capture(t)
			if len(flight) == 0 {
				t.Fatal("the client sent nothing")
			}
			out, _ := exec.Command(r.version[0], r.version[1:]...).CombinedOutput()
			name := fmt.Sprintf("%s-%s-%s", program(r.version), versionIn(string(out)), r.name)
			if err := os.WriteFile(filepath.Join(flightDir, name), flight, 0o644); err != nil {
				t.Fatal(err)
			}
			t.Logf("%s: %d bytes", name, len(flight))
		})
	}
}

// program is what a command runs, with a display of its own or without.
func program(command []string) string {
	if command[0] == "xvfb-run" {
		return command[2]
	}
	return command[0]
}

// versionIn is the first word that looks like a version; MariaDB's stands
// behind its client's own.
func versionIn(text string) string {
	if _, distribution, ok := strings.Cut(text, "Distrib "); ok {
		text = distribution
	}
	for _, word := range strings.FieldsFunc(text, func(r rune) bool { return !strings.ContainsRune("0123456789.", r) }) {
		if strings.Count(word, ".") > 0 && word[0] != '.' {
			return strings.Trim(word, ".")
		}
	}
	return "0"
}

func (r recording) capture(t *testing.T) []byte {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	host, port, _ := net.SplitHostPort(l.Addr().String())
	s := &server{t: t, l: l}
	fill := strings.NewReplacer("ADDR", l.Addr().String(), "HOST", host, "PORT", port)
	var args []string
	for _, a := range r.run[1:] {
		if a == "CONFIG" {
			a, s.port = proxyConfig(t, l.Addr().String(), r.env[0])
		}
		args = append(args, fill.Replace(a))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	s.cmd = exec.CommandContext(ctx, r.run[0], args...)
	s.cmd.Env = append(os.Environ(), "PGUSER=alice", "PGPASSWORD=x", "HOME="+t.TempDir())
	stdin, err := s.cmd.StdinPipe() // open: some end when it ends
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = s.cmd.Process.Signal(os.Interrupt)
		cancel()
		_ = s.cmd.Wait()
	}()
	return r.talk(s)
}

// accept waits for a connection.
func (s *server) accept() net.Conn {
	s.t.Helper()
	_ = s.l.(*net.TCPListener).SetDeadline(time.Now().Add(15 * time.Second))
	c, err := s.l.Accept()
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = c.Close() })
	return c
}

// flight reads until the client pauses.
func flight(c net.Conn) []byte {
	var all []byte
	buf := make([]byte, 1<<16)
	_ = c.SetReadDeadline(time.Now().Add(15 * time.Second))
	for {
		n, err := c.Read(buf)
		all = append(all, buf[:n]...)
		if err != nil {
			return all
		}
		_ = c.SetReadDeadline(time.Now().Add(quiet))
	}
}

// first is what comes unasked.
func first(s *server) []byte { return flight(s.accept()) }

// afterSSLRequest is what libpq sends when it is told that TLS is spoken.
func afterSSLRequest(s *server) []byte {
	c := s.accept()
	flight(c)
	_, _ = c.Write([]byte{'S'})
	return flight(c)
}

// afterGreeting is the hello behind MySQL's greeting and its SSL request.
func afterGreeting(s *server) []byte {
	const capabilities = 0x0008_0000 | 0x8000 | 0x0800 | 0x0200 | 1 // plugin auth, secure connection, TLS, 4.1, long password
	payload := append([]byte{10}, "8.0.36\x00"...)
	payload = append(payload, 1, 0, 0, 0)
	payload = append(payload, "abcdefgh\x00"...)
	payload = binary.LittleEndian.AppendUint16(payload, capabilities&0xffff)
	payload = append(payload, 45, 2, 0)
	payload = binary.LittleEndian.AppendUint16(payload, capabilities>>16)
	payload = append(payload, 21)
	payload = append(payload, make([]byte, 10)...)
	payload = append(payload, "abcdefghijkl\x00mysql_native_password\x00"...)
	c := s.accept()
	_, _ = c.Write(append([]byte{byte(len(payload)), 0, 0, 0}, payload...))
	b := flight(c)
	if len(b) < 4 {
		return nil
	}
	return b[min(4+int(b[0]), len(b)):]
}

// cancelled is what libpq sends on a connection of its own to cancel a query.
func cancelled(s *server) []byte {
	c := s.accept()
	back := pgproto3.NewBackend(c, c)
	if _, err := back.ReceiveStartupMessage(); err != nil {
		s.t.Fatal(err)
	}
	back.Send(&pgproto3.AuthenticationOk{})
	back.Send(&pgproto3.BackendKeyData{ProcessID: 0x00070001, SecretKey: []byte{1, 2, 3, 4}})
	back.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
	if err := back.Flush(); err != nil {
		s.t.Fatal(err)
	}
	if _, err := back.Receive(); err != nil {
		s.t.Fatal(err)
	}
	_ = s.cmd.Process.Signal(os.Interrupt)
	return first(s)
}

// proxyConfig is haproxy's, with one server.
func proxyConfig(t *testing.T, server, options string) (file, port string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ = net.SplitHostPort(l.Addr().String())
	_ = l.Close()
	file = filepath.Join(t.TempDir(), "haproxy.cfg")
	text := "defaults\n timeout connect 9s\n timeout client 9s\n timeout server 9s\n mode tcp\n" +
		"frontend f\n bind 127.0.0.1:" + port + "\n unique-id-format %[uuid()]\n default_backend b\n" +
		"backend b\n server s " + server + " " + options + "\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file, port
}

// throughProxy sends a little through haproxy.
func throughProxy(s *server) []byte {
	for range 50 {
		c, err := net.Dial("tcp", "127.0.0.1:"+s.port)
		if err != nil {
			time.Sleep(quiet) // until it listens
			continue
		}
		defer c.Close()
		_, _ = c.Write([]byte("SSH-2.0-x\r\n"))
		return bytes.Clone(first(s))
	}
	return nil
}
