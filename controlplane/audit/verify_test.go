package audit

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

// memory is a log's directory in memory, to be changed and verified often.
type memory map[string][]byte

func readDir(t testing.TB, dir string) memory {
	t.Helper()
	m := memory{}
	for _, e := range must(os.ReadDir(dir)) {
		m[e.Name()] = must(os.ReadFile(filepath.Join(dir, e.Name())))
	}
	if len(m) < 3 {
		t.Fatalf("the log has %d files", len(m))
	}
	return m
}

func (m memory) Read(name string, limit int64) ([]byte, error) {
	b, ok := m[name]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return b, nil
}

func (m memory) List() ([]fs.DirEntry, error) {
	f := fstest.MapFS{}
	for name, b := range m {
		f[name] = &fstest.MapFile{Data: b}
	}
	return f.ReadDir(".")
}

func (memory) Open(string) (file, error)   { panic("the verifier only reads") }
func (memory) Create(string) (file, error) { panic("the verifier only reads") }
func (memory) Rename(string, string) error { panic("the verifier only reads") }
func (memory) Remove(string) error         { panic("the verifier only reads") }
func (memory) SyncDir() error              { panic("the verifier only reads") }
func (memory) Free() (int64, error)        { panic("the verifier only reads") }

// smallLog is a log of a few small segments, packed and not.
func smallLog(t testing.TB) memory {
	t.Helper()
	dir := t.TempDir()
	l := openLog(t, dir, 1500)
	for i := range uint64(6) {
		appendTo(t, l, "h/1", records(1+2*i, 2), 2*(i+1))
	}
	within(t, "packing", func() bool {
		raw, _ := filepath.Glob(filepath.Join(dir, "*"+segmentSuffix))
		return len(raw) == 1
	})
	l.Close()
	mustVerify(t, dir)
	m := readDir(t, dir)
	delete(m, "lock")
	delete(m, ballastName) // says nothing
	return m
}

// TestA99_EveryChangeIsFound changes a log in every way that one place allows.
func TestA99_EveryChangeIsFound(t *testing.T) {
	t.Parallel()
	log := smallLog(t)
	names := slices.Sorted(maps.Keys(log))
	trials := 0
	try := func(what string, change func(m memory)) {
		t.Helper()
		m := maps.Clone(log)
		change(m)
		trials++
		if rep, err := verifyDisk(m, check, Head{}); err == nil {
			t.Errorf("%s: not found: %+v", what, rep)
		}
	}
	if _, err := verifyDisk(log, check, Head{}); err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(1, 2))
	for _, name := range names {
		_, packed := parsePacked(name)
		for at := range log[name] {
			if packed && at%4 != r.IntN(4) {
				continue // one checksum over all of it
			}
			try("flip", func(m memory) {
				m[name] = bytes.Clone(m[name])
				m[name][at] ^= 1 << r.IntN(8)
			})
		}
		for size := range log[name] {
			if size%7 == 0 || size > len(log[name])-100 {
				try("truncate", func(m memory) { m[name] = m[name][:size] })
			}
		}
		try("remove file", func(m memory) { delete(m, name) })
		for _, other := range names {
			if other != name {
				try("swap files", func(m memory) { m[name], m[other] = m[other], m[name] })
				try("copy over", func(m memory) { m[name] = m[other] })
			}
		}
	}
	// Inside the segments, with checksums made right.
	for _, name := range names {
		s, packed := parsePacked(name)
		if _, raw := firstOf(name); !raw && !packed {
			continue
		}
		whole := log[name]
		if packed {
			whole = must(decompress(whole))
		}
		put := func(m memory, b []byte) {
			if packed {
				b = must(compress(b))
			}
			m[name] = b
		}
		frames := split(t, whole)
		for i := range frames {
			try("remove line "+name, func(m memory) { put(m, join(whole, without(frames, i))) })
			try("cut after line "+name, func(m memory) {
				if i == len(frames)-1 {
					m[name] = nil
					return
				}
				put(m, join(whole, frames[:i+1]))
			})
			try("change line "+name, func(m memory) { put(m, join(whole, changed(frames, i))) })
			try("change type of line "+name, func(m memory) { put(m, join(whole, retyped(frames, i))) })
			try("double line "+name, func(m memory) { put(m, join(whole, slices.Insert(slices.Clone(frames), i, frames[i]))) })
			for j := range i {
				try("swap lines "+name, func(m memory) {
					f := slices.Clone(frames)
					f[i], f[j] = f[j], f[i]
					put(m, join(whole, f))
				})
			}
			try("rewritten from line "+name, func(m memory) { put(m, rechain(whole, changed(frames, i), i)) })
		}
		if packed {
			try("two forms that differ", func(m memory) { m[s.name] = join(whole, without(frames, 1)) })
			try("times in the name", func(m memory) {
				x := *s
				x.maxT++
				m[packedName(&x)] = m[name]
				delete(m, name)
			})
		}
	}
	try("back to the end of a segment", func(m memory) {
		delete(m, segmentName(lastFirst(names)))
		last := slices.MaxFunc(names, func(a, b string) int { return strings.Compare(packedFirst(a), packedFirst(b)) })
		whole := must(decompress(m[last]))
		h, _ := readHeader(whole, logMagic)
		frames := split(t, whole)
		before, _ := readFrame(frames[len(frames)-2])
		seal, _ := readFrame(frames[len(frames)-1])
		m[headName] = headFile(headText(h.id, frameSeal, chain{before.seq, before.hash}), seal.payload)
	})
	try("another segment", func(m memory) { m[segmentName(2)] = m[segmentName(lastFirst(names))] })
	try("a segment under another's number", func(m memory) {
		first := lastFirst(names)
		m[segmentName(first+1)] = m[segmentName(first)]
		delete(m, segmentName(first))
	})
	try("a file that no log writes", func(m memory) { m["x"+segmentSuffix] = m[segmentName(lastFirst(names))] })
	try("another key", func(m memory) {
		for name := range m {
			if name == headName {
				m[name] = bytes.Replace(m[name], []byte("signature "), []byte("signature AAAA"), 1)
			}
		}
	})
	t.Logf("%d changes", trials)
	if trials < 2000 {
		t.Errorf("%d changes were tried", trials)
	}
}

// packedFirst is the name of a packed segment, "" of other files.
func packedFirst(name string) string {
	if _, ok := parsePacked(name); ok {
		return name
	}
	return ""
}

// retyped makes another type of frame i; the checksum is right.
func retyped(frames [][]byte, i int) [][]byte {
	frames = slices.Clone(frames)
	b := bytes.Clone(frames[i])
	b[2] = b[2]%frameSeal + 1
	sum := crc32.Update(crc32.Checksum(b[:48], crcTable), crcTable, b[frameSize:])
	binary.LittleEndian.PutUint32(b[48:], sum)
	frames[i] = b
	return frames
}

func lastFirst(names []string) (first uint64) {
	for _, name := range names {
		if f, ok := firstOf(name); ok {
			first = f
		}
	}
	return first
}

// split cuts a segment into its frames.
func split(t testing.TB, b []byte) [][]byte {
	t.Helper()
	var out [][]byte
	for at := headerSize; at < len(b); {
		f, err := readFrame(b[at:])
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, b[at:at+f.size])
		at += f.size
	}
	return out
}

func join(whole []byte, frames [][]byte) []byte {
	return append(bytes.Clone(whole[:headerSize]), bytes.Join(frames, nil)...)
}

func without(frames [][]byte, i int) [][]byte { return slices.Delete(slices.Clone(frames), i, i+1) }

// changed gives frame i another payload, with hash and checksum as they should
// be for it.
func changed(frames [][]byte, i int) [][]byte {
	frames = slices.Clone(frames)
	f, _ := readFrame(frames[i])
	payload := bytes.Clone(f.payload)
	payload[len(payload)-2] ^= 1
	c := chain{f.seq - 1, digest{}}
	if i > 0 {
		prev, _ := readFrame(frames[i-1])
		c.hash = prev.hash
	}
	frames[i] = c.append(nil, f.typ, payload)
	return frames
}

// rechain makes a whole chain again from frame i on, as whoever has no key can.
func rechain(whole []byte, frames [][]byte, i int) []byte {
	h, _ := readHeader(whole, logMagic)
	c := chain{h.first - 1, h.prev}
	out := bytes.Clone(whole[:headerSize])
	for _, raw := range frames {
		f, _ := readFrame(raw)
		out = c.append(out, f.typ, f.payload)
	}
	return out
}

// TestA99_RolledBack: a whole log taken back to an earlier head is found with
// a head that was kept elsewhere.
func TestA99_RolledBack(t *testing.T) {
	dir := t.TempDir()
	l := openLog(t, dir, 0)
	appendTo(t, l, "h/1", records(1, 2), 2)
	l.Close()
	old := readDir(t, dir)
	l = openLog(t, dir, 0)
	appendTo(t, l, "h/1", records(3, 2), 4)
	head := l.Head()
	l.Close()
	if _, err := VerifyAfter(dir, check, head); err != nil {
		t.Fatal(err)
	}
	if _, err := verifyDisk(old, check, Head{}); err != nil {
		t.Errorf("the older log alone: %v", err)
	}
	if _, err := verifyDisk(old, check, head); err == nil {
		t.Error("the older log has the newer head")
	}
	// The log's own start tells as well, as long as the head file is newer.
	for name, b := range old {
		if name != headName {
			os.WriteFile(filepath.Join(dir, name), b, 0o600)
		}
	}
	l = openLog(t, dir, 0)
	found, err := l.Search(t.Context(), Query{Names: []string{AuditRecovered}})
	if err != nil || len(found) != 1 || !strings.Contains(string(found[0]), "which was signed") {
		t.Errorf("opening a log that was cut: %s, %v", found, err)
	}
}

// TestA99_Forks: a log that was taken back to a copy and written on is signed as the
// first one was, line by line with the same numbers. Neither does it hold a head of
// the first, nor can parts of the two be put together.
func TestA99_Forks(t *testing.T) {
	const segmentBytes, batches = 1500, 8
	start := t.TempDir()
	l := openLog(t, start, segmentBytes)
	appendTo(t, l, "h/1", records(1, 2), 2)
	l.Close()

	var logs [2]memory
	var heads [2]Head
	for i, user := range []string{"alice", "carol"} {
		dir := t.TempDir()
		if err := os.CopyFS(dir, os.DirFS(start)); err != nil {
			t.Fatal(err)
		}
		l := openLog(t, dir, segmentBytes)
		for b := range uint64(batches) {
			r := records(3+2*b, 2)
			for j := range r {
				r[j].JSON = bytes.ReplaceAll(r[j].JSON, []byte("alice"), []byte(user))
			}
			appendTo(t, l, "h/1", r, 4+2*b)
		}
		within(t, "packing", func() bool {
			raw, _ := filepath.Glob(filepath.Join(dir, "*"+segmentSuffix))
			return len(raw) == 1
		})
		heads[i] = l.Head()
		l.Close()
		logs[i] = readDir(t, dir)
		if _, err := verifyDisk(logs[i], check, heads[i]); err != nil {
			t.Fatal(err)
		}
	}
	names := slices.Sorted(maps.Keys(logs[0]))
	if last := lastFirst(names); heads[0].Sequence != heads[1].Sequence || last < 10 || logs[1][segmentName(last)] == nil {
		t.Fatalf("heads %d and %d; the last segment begins at %d", heads[0].Sequence, heads[1].Sequence, last)
	}

	if _, err := verifyDisk(logs[1], check, heads[0]); err == nil {
		t.Error("the fork is taken for a log that holds the first one's head")
	}
	mixed := maps.Clone(logs[0])
	mixed[headName] = logs[1][headName]
	if _, err := verifyDisk(mixed, check, Head{}); err == nil {
		t.Error("the fork's head file is taken for the first log's")
	}
	mixed[segmentName(lastFirst(names))] = logs[1][segmentName(lastFirst(names))]
	if _, err := verifyDisk(mixed, check, Head{}); err == nil {
		t.Error("the fork's last segment is taken for the first log's")
	}
}

// TestLogGoesOnAfterDamage: a changed line does not stop the control plane,
// and stays for the verifier to find.
func TestLogGoesOnAfterDamage(t *testing.T) {
	dir := t.TempDir()
	l := openLog(t, dir, 0)
	appendTo(t, l, "h/1", records(1, 3), 3)
	appendTo(t, l, "h/1", records(4, 3), 6)
	l.Close()
	name := filepath.Join(dir, segmentName(1))
	b := must(os.ReadFile(name))
	at := bytes.Index(b, []byte(`"uid":"u2"`))
	b[at+8] ^= 1
	os.WriteFile(name, b, 0o600)
	l = openLog(t, dir, 0)
	if got := l.Acknowledged("h/1"); got != 6 {
		t.Errorf("%d acknowledged", got)
	}
	appendTo(t, l, "h/1", records(7, 1), 7)
	found, _ := l.Search(t.Context(), Query{Names: []string{AuditRecovered, "session.start"}, Limit: 100})
	if len(found) != 7 { // 7 of 8 lines: one is damaged; and the note
		t.Errorf("%d found", len(found))
	}
	l.Close()
	rep, err := Verify(dir, check)
	if err == nil || len(rep.Faults) != 2 && len(rep.Faults) != 1 {
		t.Errorf("report %v, %v", rep.Faults, err)
	}
	if _, err := Verify(filepath.Join(dir, "none"), check); err == nil {
		t.Error("no directory")
	}
}

// TestLongTail: lines that no head signs are moved out of the log, however many, and
// nothing of them is left behind the shorter ones that follow.
func TestLongTail(t *testing.T) {
	dir := t.TempDir()
	l := openLog(t, dir, 0)
	appendTo(t, l, "h/1", records(1, 3), 3)
	l.Close()
	name := filepath.Join(dir, segmentName(1))
	b := must(os.ReadFile(name))
	sc := must(scanSegment(b, logMagic, nil))
	end := sc.chain
	for _, r := range records(4, 300) {
		b = end.append(b, frameEvent, r.JSON)
	}
	if err := os.WriteFile(name, b[:len(b)-3], 0o600); err != nil {
		t.Fatal(err)
	}
	l = openLog(t, dir, 0)
	appendTo(t, l, "h/1", records(4, 1), 4)
	l.Close()
	if rep := mustVerify(t, dir); rep.Unfinished != 0 {
		t.Errorf("%d bytes stand behind the last head", rep.Unfinished)
	}
	l = openLog(t, dir, 0)
	if found, err := l.Search(t.Context(), Query{Names: []string{AuditRecovered}}); err != nil || len(found) != 1 {
		t.Errorf("recovered once: %s, %v", found, err)
	}
	wantEvents(t, l, 4)
	if aside, err := filepath.Glob(filepath.Join(dir, cutPrefix+"*")); err != nil || len(aside) != 1 {
		t.Errorf("moved out of the log: %v, %v", aside, err)
	}
}

// TestVerifyUntoldGap: numbers of a spool may only jump where the log says so.
func TestVerifyUntoldGap(t *testing.T) {
	for name, c := range map[string]struct {
		told gap
		good bool
	}{
		"told":             {gap{"h/1", 3, 5}, true},
		"untold":           {gap{}, false},
		"of another spool": {gap{"h/2", 3, 5}, false},
		"too short":        {gap{"h/1", 3, 4}, false},
		"too early":        {gap{"h/1", 2, 5}, false},
	} {
		dir := t.TempDir()
		l := openLog(t, dir, 0)
		appendTo(t, l, "h/1", records(1, 2), 2)
		if c.told != (gap{}) {
			if err := l.Emit(t.Context(), c.told.event(), true); err != nil {
				t.Fatal(err)
			}
		}
		l.mu.Lock()
		l.spools["h/1"].seq = 5 // as if it had them
		l.mu.Unlock()
		appendTo(t, l, "h/1", records(6, 1), 6)
		l.Close()
		if _, err := Verify(dir, check); (err == nil) != c.good {
			t.Errorf("%s: %v", name, err)
		}
	}
}
