package libpq

import "strings"

// maxLine is what libpq reads of a service file's line, without its newline
// (fe-connect.c, parseServiceFileInfo: a buffer of 1,024 bytes).
const maxLine = 1022

// Put returns text, a service file (34.17), with the section of that name
// holding exactly the settings. All other bytes stay where they are. The
// settings must have passed Check, and name must be a word without brackets.
func Put(text, name string, settings []Setting) string {
	section := "[" + name + "]\n"
	for _, s := range settings {
		section += s.Key + "=" + s.Value + "\n"
	}
	first, rest := cut(text, name)
	if first < 0 {
		return appended(text, section)
	}
	return rest[:first] + section + rest[first:]
}

// Get reads the section of that name as libpq does: the first one, without
// comments. ok is false when there is none.
func Get(text, name string) (settings []Setting, ok bool) {
	for line := range strings.Lines(text) {
		header, is := section(line)
		switch {
		case is && ok:
			return settings, true
		case is:
			ok = header == name
		case ok && !blank(line):
			key, value, _ := strings.Cut(strings.Trim(line, blanks), "=")
			settings = append(settings, Setting{key, value})
		}
	}
	return settings, ok
}

// blanks are what C's isspace takes for one.
const blanks = " \t\n\v\f\r"

// Remove returns text without the section of that name.
func Remove(text, name string) string {
	_, rest := cut(text, name)
	return rest
}

func appended(text, section string) string {
	switch {
	case text == "" || strings.HasSuffix(text, "\n\n"):
	case strings.HasSuffix(text, "\n"):
		text += "\n"
	default:
		text += "\n\n"
	}
	return text + section
}

// cut takes every section of that name out of text, and says where the first
// was, -1 for nowhere. A section ends with its last setting: blank lines and
// comments behind it are the next one's.
func cut(text, name string) (first int, rest string) {
	first = -1
	var kept, pending strings.Builder
	inside := false
	for line := range strings.Lines(text) {
		header, is := section(line)
		switch {
		case is:
			inside = header == name
			kept.WriteString(pending.String())
			pending.Reset()
			if inside && first < 0 {
				first = kept.Len()
			}
			if !inside {
				kept.WriteString(line)
			}
		case !inside:
			kept.WriteString(line)
		case blank(line):
			pending.WriteString(line)
		default:
			// A setting: the comments above it belong to the section too.
			pending.Reset()
		}
	}
	kept.WriteString(pending.String())
	return first, kept.String()
}

// section reads a header as libpq does: blanks before it are skipped, what
// follows the bracket is ignored, and without one it is nobody's.
func section(line string) (name string, is bool) {
	line = strings.TrimLeft(line, blanks)
	if !strings.HasPrefix(line, "[") {
		return "", false
	}
	name, _, closed := strings.Cut(line[1:], "]")
	if !closed {
		name = ""
	}
	return name, true
}

func blank(line string) bool {
	line = strings.Trim(line, blanks)
	return line == "" || strings.HasPrefix(line, "#")
}
