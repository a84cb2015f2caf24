package tpm

import (
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// What a caller decides by. Everything else is a TPM that does not work.
var (
	// ErrPolicy: the registers are not what they were when the secret was sealed.
	ErrPolicy = errors.New("the TPM's policy does not hold")
	// ErrForeign: this is another TPM, or it was cleared.
	ErrForeign = errors.New("this is not the TPM it was made with, or it was cleared")
	// ErrAuth: the authorisation is wrong.
	ErrAuth = errors.New("the TPM refuses the authorisation")
	// ErrNoIndex: the NV index does not exist; the answer was authenticated.
	ErrNoIndex = errors.New("the TPM has no such NV index")
	// ErrUnwritten: the NV index exists and was never written.
	ErrUnwritten = errors.New("the NV index was never written")
	// ErrSilent: no answer came in time. Nothing is sent any more before a Reset.
	ErrSilent = errors.New("the TPM does not answer in time")
	// ErrBank: the SHA-256 bank cannot be used to seal.
	ErrBank = errors.New("the TPM's SHA-256 registers cannot be used")
)

// explain says what was being done and sorts the response code.
func explain(doing string, err error) error {
	if err == nil {
		return nil
	}
	is := func(codes ...tpm2.TPMRC) bool {
		for _, c := range codes {
			if errors.Is(err, c) {
				return true
			}
		}
		return false
	}
	kind := error(nil)
	switch {
	case is(tpm2.TPMRCPolicyFail, tpm2.TPMRCPolicy):
		kind = ErrPolicy
	case is(tpm2.TPMRCIntegrity):
		kind = ErrForeign
	case is(tpm2.TPMRCAuthFail, tpm2.TPMRCBadAuth, tpm2.TPMRCLockout, tpm2.TPMRCNVAuthorization):
		kind = ErrAuth
	case is(tpm2.TPMRCNVUninitialized):
		kind = ErrUnwritten
	}
	if kind != nil {
		return fmt.Errorf("%s: %w: %w", doing, kind, err)
	}
	return fmt.Errorf("%s: %w", doing, err)
}
