package api

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"

	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
)

const apiDoc = "../../docs/api.md"

var update = flag.Bool("update", false, "write "+apiDoc)

// TestDocs holds docs/api.md to the table; -update writes it.
func TestDocs(t *testing.T) {
	want := document()
	if *update {
		if err := os.WriteFile(apiDoc, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(apiDoc)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("docs/api.md is not what methods() says: go test ./controlplane/api -run TestDocs -update")
	}
}

const apiDocHead = `# The API

<!-- Made from controlplane/api/methods.go by: go test ./controlplane/api -run TestDocs -update -->

One schema, proto/sallyport/v1/api.proto, serves programs, agents, gateways and the web UI, as Connect, gRPC, gRPC-web
and JSON from one handler. This page says who may call what. A method that is not in the table is refused to everybody.

## Who calls

| caller | comes by | is |
|---|---|---|
| strangers who join | ALPN sallyport-join/1 on the cluster's port; the server is checked by the pin of its CA | nobody |
| users | ALPN sallyport-auth/1, mutual TLS | a certificate of the user CA |
| agents, gateways | the same | a certificate of the host CA |
| web visitors | HTTPS on the cluster's name; the gateway passes on what needs no login, with its own certificate and the visitor's address in Sallyport-Client-Addr | nobody, with an address |
| the admin socket | data_dir/admin.sock, mode 0600 | root or the owner of the process, by the kernel's word |

Certificates of one CA are refused where the other is wanted, and those that a gateway holds for a browser everywhere.

## What is asked at every call

A connection outlives what opened it, so each call asks again:

1. the table below: is this sort of caller meant;
2. the certificate has not ended, its user exists, no lock names its holder, and it is used from the address that it is
   bound to (below);
3. where the table has a verb: the roles of the certificate **and** those of the user's record now both allow it. Who lost
   a role has lost it here at once; who got one logs in for it. The admin socket needs no role;
4. methods on documents ask for the verb on the document's own kind: reading all of a kind needs list and read,
   replacing one create and update;
5. where a rule has a where, the table says "by name" of the methods whose object has a name, and then the rule is judged
   on it: what is listed is what the caller may see, and a list of which he could see nothing is refused.

**What a where can ask.** user.metadata.name, user.spec.roles and user.spec.traits["x"] of the caller, resource.kind, and
of methods "by name" resource.metadata.name: a user's, role's, lock's or token's name, as it is written, and of an agent or gateway its id.
A rule that asks anything else (labels, resource.spec, session), or the name where there is none, cannot be answered
by this version: under allow it allows nothing, and under deny it denies. Everybody may read his own user and the roles that he has.

A refused call of somebody with a certificate is recorded as access.denied, at most so often per caller; not those of a host whose certificate has ended,
but for what is wrong with its renewal.

**Addresses.** A certificate that is bound to an address (pin_source_ip) is good where auth knows the client's address: by a
gateway on auth's own machine, which tells it by a PROXY header on the Unix socket. By auth.listen the other end may be a
gateway of another machine, whose address would be that of all its clients; such a certificate is refused there for the
API, with the reason. Sessions are not affected: agents know the address from the gateway's open frame.

**Records.** What a method changes is recorded first, and without the record it does not happen. When the change then
fails a second record says so (success false, undone_uid). What is issued is recorded before it is handed out. Announce records
what it changes of an agent's assignment (instance.assign: new, changed, given_up), and nothing when that stays as it is;
an agent may change it 20 times at once, and then every 10 s. The tokens of IssueAppToken belong to a session whose start the agent records.

**Bounds.** Who may not make a call is refused before anything of its message is read. A message has, decompressed, at most 64 KiB
from strangers, visitors and in AccessService, 1 MiB in AdminService, 128 KiB in HostService, but 8 MiB in Announce, 2 MiB in
AppendEvents and 8 MiB in ReportPresence; of these three a host has two under way at a time of each, and more wait. The elements
of a message's lists are counted before they are decoded: 1,024 at most in the small ones, 65,536 in AdminService, 4,096 in
AppendEvents, 131,072 in Announce and 262,144 in ReportPresence. Two searches of the log
are under way at a time, and two calls of SearchEvents of one caller; more wait, for 10 and 30 s at most. Requests of one user have
8 MiB together while they are under way, those of all users 64 MiB, of one host 16 MiB, of all hosts 256 MiB and 128 MiB in
AppendEvents (as the head says; compressed or without a length, what the method may have); more wait unread for 30 s, and then hear resource_exhausted. 10 s for the handshake, 30 s for a request; 1,024 connections
without a certificate, of which the oldest makes room, and 20,000 with one, 15,000 of them of users. Of one user or host it is 256:
the oldest that no call is on makes room, and when there is none the new one is closed. Who is locked or gone is told so at
a call, and has a stranger's place.

## The table

| method | who | roles need |
|---|---|---|
`

func document() string {
	var b strings.Builder
	b.WriteString(apiDocHead)
	rules := methods()
	services := sallyportv1.File_sallyport_v1_api_proto.Services()
	for i := range services.Len() {
		s := services.Get(i)
		names := []string{}
		for j := range s.Methods().Len() {
			names = append(names, string(s.Methods().Get(j).Name()))
		}
		slices.Sort(names)
		for _, name := range names {
			m := s.Methods().ByName(protoreflect.Name(name))
			r := rules["/"+string(s.FullName())+"/"+name]
			stream := ""
			if m.IsStreamingServer() {
				stream = " (stream)"
			}
			need := ""
			if r.kind != "" {
				need = fmt.Sprintf("%s on %s", r.verb, r.kind)
			}
			if r.named {
				need += ", by name"
			}
			fmt.Fprintf(&b, "| %s.%s%s | %s | %s |\n", s.Name(), name, stream, r.who, need)
		}
	}
	return b.String()
}
