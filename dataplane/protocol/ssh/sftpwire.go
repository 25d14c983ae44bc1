package ssh

import (
	"encoding/binary"
	"errors"
)

// Packets of SFTP version 3 (draft-ietf-secsh-filexfer-02).
const (
	fxpInit     = 1
	fxpOpen     = 3
	fxpClose    = 4
	fxpRead     = 5
	fxpWrite    = 6
	fxpSetstat  = 9
	fxpFsetstat = 10
	fxpOpendir  = 11
	fxpRemove   = 13
	fxpMkdir    = 14
	fxpRmdir    = 15
	fxpRename   = 18
	fxpSymlink  = 20
	fxpExtended = 200

	fxpVersion = 2
	fxpStatus  = 101
	fxpHandle  = 102
	fxpData    = 103
)

const (
	maxRequest  = 256 << 10 // bytes of a packet, as in OpenSSH's sftp-server
	maxResponse = 1 << 20
	maxKept     = 16 << 10 // bytes of a packet that are kept to be read: two paths
	maxKeptData = 300      // of one with a file's bytes: a handle is 256 at most
)

const lengthSize = 4 // bytes of a packet's length, and of each string's

var errPacket = errors.New("sftp: malformed packet")

// packets cuts one direction of SFTP into its packets, without holding up or
// keeping the bytes of files.
type packets struct {
	max    uint32 // bytes of a packet
	data   byte   // the type whose packets carry files
	length [lengthSize]byte
	have   int    // bytes of length
	size   uint32 // of the present packet
	rest   uint32 // bytes of it that are still to come
	head   []byte // its first bytes
}

// feed calls each for every packet that ends in b, with its size and its first
// bytes, which are good until each returns.
func (p *packets) feed(b []byte, each func(size uint32, head []byte) error) error {
	for len(b) > 0 {
		if p.rest == 0 {
			n := copy(p.length[p.have:], b)
			p.have, b = p.have+n, b[n:]
			if p.have < len(p.length) {
				return nil
			}
			p.have = 0
			p.size = binary.BigEndian.Uint32(p.length[:])
			if p.size == 0 || p.size > p.max {
				return errPacket
			}
			p.rest, p.head = p.size, p.head[:0]
			continue
		}
		n := min(len(b), int(p.rest))
		p.keep(b[:n])
		p.rest -= uint32(n)
		b = b[n:]
		if p.rest > 0 {
			return nil
		}
		if err := each(p.size, p.head); err != nil {
			return err
		}
	}
	return nil
}

func (p *packets) keep(b []byte) {
	limit := maxKept
	if first := append(p.head, b[0])[0]; first == p.data {
		limit = maxKeptData
	}
	if room := limit - len(p.head); room > 0 {
		p.head = append(p.head, b[:min(room, len(b))]...)
	}
}

// copies says whether an extension has the server move bytes from file to file: how
// many is in none of its packets (copy-data of OpenSSH's PROTOCOL, copy-file of
// draft-ietf-secsh-filexfer-extensions-00).
func copies(extension string) bool { return extension == "copy-data" || extension == "copy-file" }

// offer is a server's first packet without the extensions that copy.
func offer(packet []byte) ([]byte, error) {
	f := fieldsOf(uint32(len(packet)-lengthSize), packet[lengthSize:])
	if f.byte() != fxpVersion {
		return packet, nil
	}
	f.uint32()
	kept := packet[:len(packet)-len(f.b)]
	kept = kept[:len(kept):len(kept)] // what follows is read while it is appended to
	for len(f.b) > 0 {
		pair := f.b
		copying := copies(f.string())
		f.string()
		if f.bad {
			return nil, errPacket
		}
		if !copying {
			kept = append(kept, pair[:len(pair)-len(f.b)]...)
		}
	}
	binary.BigEndian.PutUint32(kept, uint32(len(kept)-lengthSize))
	return kept, nil
}

// fields reads a packet's fields in order. After a fault all are zero, and bad
// is set; a string that goes beyond what was kept is cut, and ends the reading.
type fields struct {
	b    []byte
	rest int // bytes of the packet, those that were not kept included
	bad  bool
	cut  bool
}

func fieldsOf(size uint32, head []byte) *fields { return &fields{b: head, rest: int(size)} }

func (f *fields) byte() byte {
	if len(f.b) < 1 {
		f.bad = true
		return 0
	}
	v := f.b[0]
	f.b, f.rest = f.b[1:], f.rest-1
	return v
}

func (f *fields) uint32() uint32 {
	if len(f.b) < 4 {
		f.bad = f.bad || !f.cut
		f.b = nil
		return 0
	}
	v := binary.BigEndian.Uint32(f.b)
	f.b, f.rest = f.b[4:], f.rest-4
	return v
}

func (f *fields) string() string {
	n := int64(f.uint32())
	if f.bad || f.cut || n > int64(f.rest) {
		f.bad = f.bad || !f.cut
		return ""
	}
	if n > int64(len(f.b)) {
		f.cut = true
		s := string(f.b)
		f.b = nil
		return s
	}
	s := string(f.b[:n])
	f.b, f.rest = f.b[n:], f.rest-int(n)
	return s
}
