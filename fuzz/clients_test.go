package fuzz

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"strings"
	"testing"

	utls "github.com/refraction-networking/utls"

	"github.com/sallyport/sallyport/alpn"
)

// parrots are the clients that uTLS imitates.
var parrots = []utls.ClientHelloID{
	utls.HelloGolang, utls.HelloRandomizedALPN, utls.HelloRandomizedNoALPN,
	utls.HelloFirefox_55, utls.HelloFirefox_56, utls.HelloFirefox_63, utls.HelloFirefox_65, utls.HelloFirefox_99,
	utls.HelloFirefox_102, utls.HelloFirefox_105, utls.HelloFirefox_120,
	utls.HelloChrome_58, utls.HelloChrome_62, utls.HelloChrome_70, utls.HelloChrome_72, utls.HelloChrome_83, utls.HelloChrome_87,
	utls.HelloChrome_96, utls.HelloChrome_100, utls.HelloChrome_102, utls.HelloChrome_106_Shuffle, utls.HelloChrome_100_PSK,
	utls.HelloChrome_112_PSK_Shuf, utls.HelloChrome_114_Padding_PSK_Shuf, utls.HelloChrome_115_PQ, utls.HelloChrome_115_PQ_PSK,
	utls.HelloChrome_120, utls.HelloChrome_120_PQ, utls.HelloChrome_131, utls.HelloChrome_133,
	utls.HelloIOS_11_1, utls.HelloIOS_12_1, utls.HelloIOS_13, utls.HelloIOS_14, utls.HelloAndroid_11_OkHttp,
	utls.HelloEdge_85, utls.HelloEdge_106, utls.HelloSafari_16_0, utls.Hello360_7_5, utls.Hello360_11_0, utls.HelloQQ_11_1,
}

// parrotName is what the parrots ask for.
const parrotName = "shop.example.com"

// parrotHello is what a client that uTLS imitates sends first. Those with a
// pre-shared key get one of zeros, as if it had been here before.
func parrotHello(t testing.TB, id utls.ClientHelloID) []byte {
	t.Helper()
	var sent bytes.Buffer
	config := &utls.Config{ServerName: parrotName, InsecureSkipVerify: true, OmitEmptyPsk: true}
	preset := id
	if strings.Contains(id.Version, "PSK") {
		preset = utls.HelloCustom
	}
	client := utls.UClient(writerConn{script{strings.NewReader("")}, &sent}, config, preset)
	if preset == utls.HelloCustom {
		spec, err := utls.UTLSIdToSpec(id)
		if err != nil {
			t.Fatal(id.Str(), err)
		}
		spec.Extensions[len(spec.Extensions)-1] = &utls.GenericExtension{Id: 41, Data: fakeKey()}
		if err := client.ApplyPreset(&spec); err != nil {
			t.Fatal(id.Str(), err)
		}
	}
	_ = client.Handshake()
	if sent.Len() < 5 {
		t.Fatalf("%s sent nothing", id.Str())
	}
	return firstRecord(sent.Bytes())
}

// fakeKey is a pre_shared_key extension (RFC 8446, section 4.2.11): one
// identity, its age, one binder.
func fakeKey() []byte {
	identity := append(vec16(make([]byte, 113)), 1, 2, 3, 4)
	return append(vec16(identity), vec16(vec8(make([]byte, 32)))...)
}

func firstRecord(b []byte) []byte { return b[:5+int(b[3])<<8+int(b[4])] }

// encryptedHello is what crypto/tls sends to a server whose public name is
// outer, when it wants inner (draft-ietf-tls-esni-25).
func encryptedHello(t testing.TB, inner, outer string, protocols ...string) []byte {
	t.Helper()
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	contents := []byte{7, 0, 0x20} // config id, DHKEM(X25519, HKDF-SHA256)
	contents = append(contents, vec16(key.PublicKey().Bytes())...)
	contents = append(contents, vec16([]byte{0, 1, 0, 1})...) // HKDF-SHA256, AES-128-GCM
	contents = append(contents, 32)
	contents = append(contents, vec8([]byte(outer))...)
	contents = append(contents, 0, 0)
	config := append([]byte{0xfe, 0x0d}, vec16(contents)...)
	return goHello(t, &tls.Config{ServerName: inner, InsecureSkipVerify: true, NextProtos: protocols, MinVersion: tls.VersionTLS13,
		EncryptedClientHelloConfigList: vec16(config)})
}

// clientHellos are hellos of every client that we have or can imitate, by name.
func clientHellos(t testing.TB) map[string][]byte {
	t.Helper()
	hellos := map[string][]byte{
		"go":           goHello(t, &tls.Config{ServerName: parrotName, NextProtos: []string{"h2", "http/1.1"}}),
		"go 1.2":       goHello(t, &tls.Config{ServerName: "orders.db.gw.test", MaxVersion: tls.VersionTLS12, NextProtos: []string{"postgresql"}}),
		"go nameless":  goHello(t, &tls.Config{InsecureSkipVerify: true}),
		"go encrypted": encryptedHello(t, "secret.example.com", parrotName, "h2"),
	}
	for _, id := range parrots {
		hellos["parrot "+id.Str()] = parrotHello(t, id)
	}
	for client, b := range clientFlights(t) {
		if i := bytes.IndexByte(b, '\n') + 1; bytes.HasPrefix(b, []byte("PROXY ")) {
			b = b[i:]
		}
		if is, answer, _ := alpn.Probe(b); is == alpn.TLS && answer == alpn.Yes {
			hellos[client] = b
		}
	}
	return hellos
}

// TestA33_Clients: every client's hello reads as crypto/tls reads it, and goes
// where it went whole: in packets of a byte, in two records cut anywhere, in
// many, with its name at the end, and padded to the bound.
func TestA33_Clients(t *testing.T) {
	table, err := alpn.NewTable("gw.test", []alpn.Match{
		{SNI: []string{parrotName}, ALPN: []string{"h2"}}, {SNI: []string{parrotName}}, {SNI: []string{"*"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for client, whole := range clientHellos(t) {
		t.Run(client, func(t *testing.T) {
			t.Parallel()
			want, err := parsed(whole)
			if err != nil {
				t.Fatal(err)
			}
			sameAsTheirs(t, want, theirs(whole), whole)
			route := shown(table.Route(want))
			goesThere := func(how string, b []byte) {
				t.Helper()
				h, err := parsed(b)
				if err != nil || shown(table.Route(h)) != route {
					t.Fatalf("%s: %v, %s; whole %s", how, err, shown(table.Route(h)), route)
				}
			}
			message := messageOf(whole)
			for cut := 1; cut < len(message); cut++ {
				goesThere(fmt.Sprint("cut at ", cut), append(cutAt(message[:cut], maxRecord), cutAt(message[cut:], maxRecord)...))
			}
			for _, size := range []int{1, 2, 3, 4, 5, 16, 100} {
				b := cutAt(message, size)
				goesThere(fmt.Sprint("records of ", size), b)
				if size == 16 {
					inPackets(t, b)
				}
			}
			inPackets(t, whole)
			goesThere("name at the end", cutAt(nameLast(message), maxRecord))
			for _, size := range []int{8 << 10, 16 << 10, 17 << 10, 40 << 10, alpn.MaxHello} {
				goesThere(fmt.Sprint(size, " bytes"), padded(t, message, size))
			}
			if _, err := parsed(append(padded(t, message, alpn.MaxHello), 0)); err != nil {
				t.Errorf("a byte behind the largest: %v", err)
			}
			var h alpn.Hello
			if need, err := h.Parse(padded(t, message, alpn.MaxHello+1)); err != alpn.FaultLarge || need != 0 {
				t.Errorf("a byte too many: %d, %v", need, err)
			}
		})
	}
}

// inPackets shows every beginning of a hello: there is no answer before its end.
func inPackets(t *testing.T, b []byte) {
	t.Helper()
	var h alpn.Hello
	for n := range b {
		if need, err := h.Parse(b[:n]); err != nil || need <= n || need > len(b) {
			t.Fatalf("%d of %d bytes: needs %d, %v", n, len(b), need, err)
		}
	}
}

// nameLast moves the server name behind the other extensions; a pre-shared key
// must stay the last.
func nameLast(message []byte) []byte {
	head, all := extensionsOf(message)
	var names, others, keys []extension
	for _, e := range all {
		switch e.kind {
		case 0:
			names = append(names, e)
		case 41:
			keys = append(keys, e)
		default:
			others = append(others, e)
		}
	}
	return withExtensions(head, append(append(others, names...), keys...))
}

// padded is the hello in records of 2^14 bytes, with an extension in front that
// makes it size bytes in all.
func padded(t *testing.T, message []byte, size int) []byte {
	t.Helper()
	headers := 5 * ((size + maxRecord + 4) / (maxRecord + 5))
	room := size - headers - len(message) - 4
	if room < 0 {
		t.Fatalf("%d bytes are not enough", size)
	}
	head, all := extensionsOf(message)
	b := cutAt(withExtensions(head, append([]extension{{0x4444, make([]byte, room)}}, all...)), maxRecord)
	if len(b) != size {
		t.Fatalf("padded to %d, want %d", len(b), size)
	}
	return b
}
