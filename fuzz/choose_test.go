package fuzz

import "strings"

// The words that chosenHello puts into server names and protocol lists.
var (
	helloNames = []string{
		"a.gw.test", "A.GW.Test", "x", "a.b.", ".", "10.0.0.1", "256.1.1.1", "1.2.3", "::1", "fe80::1%lo", "::ffff:1.2.3.4", "a..b", "-a.b", "a_b.c",
		"*.gw.test", "xn--bcher-kva.test", "b\xc3\xbccher.test", "a\x00.b", strings.Repeat("a.", 126) + "b", strings.Repeat("a.", 127) + "b",
		strings.Repeat("a", 63) + ".b", strings.Repeat("a", 64) + ".b", "a.1", "a.b-", "a.b:443", "",
	}
	helloProtocols = []string{"h2", "http/1.1", "postgresql", "sallyport-ssh/1", "\x0a\x0a", "H2", "", "x", strings.Repeat("p", 255)}
)

// chosenHello is a hello whose fields are chosen by dice: mostly right, and
// wrong in one place or another, cut into records in some way.
func chosenHello(d *dice) []byte {
	message := chosenMessage(d)
	if d.roll(8) == 7 { // bytes behind the hello
		message = append(message, 20, 0, 0, 1, 0)
	}
	var b []byte
	switch d.roll(4) {
	case 0:
		b = cutAt(message, maxRecord)
	case 1:
		b = cutAt(message, 1+d.roll(256))
	case 2:
		at := d.roll(256) % len(message)
		b = append(cutAt(message[:at], maxRecord), cutAt(message[at:], maxRecord)...)
	case 3:
		at := d.roll(256) % len(message)
		b = append(cutAt(message[:at], 1+d.roll(40)), chosenRecord(d)...)
		b = append(b, cutAt(message[at:], 1+d.roll(256))...)
	}
	switch d.roll(8) {
	case 6:
		b = b[:len(b)*d.roll(256)/256]
	case 7:
		at := d.roll(256) << 8 % len(b)
		b[(at+d.roll(256))%len(b)] ^= byte(1 << d.roll(8))
	}
	return b
}

// chosenRecord is one that does not belong into a hello.
func chosenRecord(d *dice) []byte {
	return [][]byte{
		{21, 3, 1, 0, 2, 1, 90}, {21, 3, 1, 0, 2, 2, 40}, {22, 3, 1, 0, 0}, {20, 3, 1, 0, 1, 1}, {23, 3, 3, 0, 1, 0}, {22, 2, 0, 0, 1, 1}, {22, 3, 4, 0, 1, 0},
	}[d.roll(7)]
}

func chosenMessage(d *dice) []byte {
	head := append([]byte{1, 0, 0, 0, 3, 3}, make([]byte, 32)...)
	head = append(head, vec8(make([]byte, []int{0, 0, 32, 16, 33, 255}[d.roll(6)]))...)
	head = append(head, vec16(make([]byte, []int{4, 2, 64, 0, 3}[d.roll(5)]))...)
	head = append(head, vec8(make([]byte, []int{1, 1, 1, 2, 0}[d.roll(5)]))...)
	var all []extension
	for range d.roll(8) {
		all = append(all, chosenExtension(d, all))
	}
	if len(all) == 0 && d.roll(2) == 1 {
		return counted(head) // no extensions, not even their length
	}
	return withExtensions(head, all)
}

func chosenExtension(d *dice, before []extension) extension {
	switch d.roll(12) {
	case 0, 1:
		return chosenName(d)
	case 2, 3:
		return protocolList(d.pick(d.roll(4), helloProtocols))
	case 4:
		return protocolList(d.pick(d.roll(40), helloProtocols[:4]))
	case 5:
		grease := uint16(d.roll(16))<<4 | 0xa
		return extension{grease<<8 | grease, make([]byte, d.roll(2))}
	case 6:
		return extension{21, make([]byte, d.roll(256)<<d.roll(7))}
	case 7:
		return extension{41, fakeKey()}
	case 8:
		return extension{0xfe0d, [][]byte{{1}, append([]byte{0, 0, 1, 0, 1, 7}, append(vec16(make([]byte, 32)), vec16(make([]byte, 90))...)...), {0}, {2}}[d.roll(4)]}
	case 9:
		return extension{43, [][]byte{{2, 3, 4}, {2, 3, 3}, {0}, {1, 3}}[d.roll(4)]}
	case 10:
		if len(before) > 0 {
			return before[d.roll(len(before))]
		}
	}
	return extension{uint16(d.roll(256)), make([]byte, d.roll(256))}
}

// chosenName is a server name extension: one host name, most of the time.
func chosenName(d *dice) extension {
	name := serverName(helloNames[d.roll(len(helloNames))])
	switch d.roll(6) {
	case 4: // a name of another type before it
		other := append([]byte{1}, vec16([]byte("x"))...)
		return extension{0, vec16(append(other, name.data[2:]...))}
	case 5:
		return extension{0, [][]byte{nil, {0}, {0, 0}, append(name.data, 0), append(vec16(append(name.data[2:], name.data[2:]...)), name.data[2:2]...), {0, 1, 0}}[d.roll(6)]}
	}
	return name
}
