package control

import "time"

// Requests about web certificates. The console keeps the keys and speaks with
// the ACME server; what is not the console's is asked for here.
var (
	// OpChallengePut lets the gateway answer one ACME challenge (http-01) on
	// port 80, for at most ChallengeLife.
	OpChallengePut = Op[Challenge, None]{"challenge-put", []Role{Console}}
	// OpChallengeDrop ends that.
	OpChallengeDrop = Op[ChallengeToken, None]{"challenge-drop", []Role{Console}}
	// OpChallenges is what the gateway may answer now.
	OpChallenges = Op[None, Challenges]{"challenges", []Role{Gateway}}
	// OpCertificateFiles reads the operator's files of the hosted form. It
	// answers when they are others than those seen, or after CertificateFilesWait.
	OpCertificateFiles = Op[CertificateFilesSeen, CertificateFiles]{"certificate-files", []Role{Console}}
)

// The bounds of challenges: a certificate has a few names, and a validation
// takes seconds.
const (
	ChallengeLife     = 10 * time.Minute
	MaxChallenges     = 16
	MaxChallengeToken = 128 // characters
	MaxChallengeText  = 256
)

// CertificateFilesWait is the longest that OpCertificateFiles takes.
const CertificateFilesWait = 25 * time.Second

// Challenge is one answer: Text to whoever asks for exactly Token.
type Challenge struct {
	Token string `json:"token"` // base64url
	Text  string `json:"text"`  // token, a dot, base64url
}

// ChallengeToken names one.
type ChallengeToken struct {
	Token string `json:"token"`
}

// Challenges are those that may be answered now.
type Challenges struct {
	Challenges []Challenge `json:"challenges"`
}

// CertificateFilesSeen is the version of the files that the asker has; 0: none.
type CertificateFilesSeen struct {
	Version uint64 `json:"version"`
}

// CertificateFiles is a certificate that the operator keeps in files.
type CertificateFiles struct {
	Version uint64 `json:"version"` // goes up with each change
	Named   bool   `json:"named"`   // the configuration names files
	Chain   []byte `json:"chain,omitempty"`
	Key     []byte `json:"key,omitempty"`
	Problem string `json:"problem,omitempty"` // why they could not be read
}
