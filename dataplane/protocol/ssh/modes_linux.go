package ssh

import (
	"golang.org/x/sys/unix"
)

// sendBreak is what tcsendbreak(3) does on Linux.
func sendBreak(fd int) error { return unix.IoctlSetInt(fd, unix.TCSBRK, 0) }

// noCharacter switches a control character off (RFC 4254 section 8).
const noCharacter = 255

// controls are the control characters by opcode (RFC 4254 section 8).
var controls = map[byte]int{
	1: unix.VINTR, 2: unix.VQUIT, 3: unix.VERASE, 4: unix.VKILL, 5: unix.VEOF, 6: unix.VEOL, 7: unix.VEOL2,
	8: unix.VSTART, 9: unix.VSTOP, 10: unix.VSUSP, 12: unix.VREPRINT, 13: unix.VWERASE, 14: unix.VLNEXT, 18: unix.VDISCARD,
}

var inputFlags = map[byte]uint32{
	30: unix.IGNPAR, 31: unix.PARMRK, 32: unix.INPCK, 33: unix.ISTRIP, 34: unix.INLCR, 35: unix.IGNCR, 36: unix.ICRNL,
	37: unix.IUCLC, 38: unix.IXON, 39: unix.IXANY, 40: unix.IXOFF, 41: unix.IMAXBEL, 42: unix.IUTF8, // 42: RFC 8160
}

var localFlags = map[byte]uint32{
	50: unix.ISIG, 51: unix.ICANON, 52: unix.XCASE, 53: unix.ECHO, 54: unix.ECHOE, 55: unix.ECHOK, 56: unix.ECHONL,
	57: unix.NOFLSH, 58: unix.TOSTOP, 59: unix.IEXTEN, 60: unix.ECHOCTL, 61: unix.ECHOKE, 62: unix.PENDIN,
}

var outputFlags = map[byte]uint32{
	70: unix.OPOST, 71: unix.OLCUC, 72: unix.ONLCR, 73: unix.OCRNL, 74: unix.ONOCR, 75: unix.ONLRET,
}

var controlFlags = map[byte]uint32{92: unix.PARENB, 93: unix.PARODD}

// characterSize is the opcode of each size: exactly one holds.
var characterSize = map[byte]uint32{90: unix.CS7, 91: unix.CS8}

// setModes applies what the client said about its own terminal; opcodes that
// this system does not have are ignored, as RFC 4254 section 8 wants.
func setModes(fd int, modes []mode) error {
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return err
	}
	for _, m := range modes {
		applyMode(t, m)
	}
	return unix.IoctlSetTermios(fd, unix.TCSETS, t)
}

func applyMode(t *unix.Termios, m mode) {
	if i, ok := controls[m.op]; ok {
		t.Cc[i] = byte(m.arg)
		if m.arg == noCharacter {
			t.Cc[i] = 0 // _POSIX_VDISABLE
		}
		return
	}
	if size, ok := characterSize[m.op]; ok && m.arg != 0 {
		t.Cflag = t.Cflag&^uint32(unix.CSIZE) | size
		return
	}
	for _, kind := range []struct {
		flags map[byte]uint32
		word  *uint32
	}{{inputFlags, &t.Iflag}, {localFlags, &t.Lflag}, {outputFlags, &t.Oflag}, {controlFlags, &t.Cflag}} {
		if bit, ok := kind.flags[m.op]; ok {
			*kind.word &^= bit
			if m.arg != 0 {
				*kind.word |= bit
			}
		}
	}
}
