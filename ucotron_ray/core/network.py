"""How servers are reached: through which proxy and with which certificates. Holds names of secrets, never a secret.

A proxy is asked only where the place says so: one of the shell would else be given requests that carry a key.
"""

import ssl
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

from ucotron_ray.core import variables
from ucotron_ray.core.errors import ConfigError
from ucotron_ray.core.place import Api


@dataclass(frozen=True)
class Network:
    """The way to a server. Travels to workers."""

    allowed_hosts: tuple[str, ...] = ()
    """Hosts that may be asked by http or in a private network, beside this machine."""
    proxy: str | None = None
    proxy_password_variable: str | None = None
    use_environment_proxy: bool = False
    ca_file: str | None = None
    client_certificate: str | None = None
    client_key: str | None = None

    def proxy_for(self, url: str) -> str | None:
        """The proxy for a URL, with its password: do not print it. Raises ConfigError for a password that is not set.

        The place's own proxy is for every server; of the environment's, NO_PROXY is heeded.
        """
        if self.proxy is not None:
            return _with_password(self.proxy, variables.secret(self.proxy_password_variable, None))
        parts = urlsplit(url)
        if not self.use_environment_proxy or urllib.request.proxy_bypass(parts.netloc):
            return None
        found = urllib.request.getproxies_environment()
        return found.get(parts.scheme) or found.get("all")

    def hosts_for(self, url: str) -> tuple[str, ...]:
        """Hosts to which a connection may lead: a proxy is in the user's own network as a rule."""
        proxy = self.proxy_for(url)
        return (*self.allowed_hosts, *([urlsplit(proxy).hostname or ""] if proxy else []))

    def tls(self) -> ssl.SSLContext:
        """Certificates of the machine (or of SSL_CERT_FILE), the place's own CA, and who we are.

        Raises ConfigError where a file cannot be used.
        """
        # Reading the machine's certificates takes 20 ms.
        context = ssl.create_default_context()
        if self.ca_file is not None:
            try:
                context.load_verify_locations(Path(self.ca_file).expanduser())
            except (OSError, ssl.SSLError) as error:
                raise _unusable("api.ca_file", self.ca_file, "a file of certificates in PEM", error) from None
        if self.client_certificate is not None:
            expected = "a certificate and its key without a passphrase, in PEM"
            key = Path(self.client_key).expanduser() if self.client_key else None
            try:
                # A passphrase would be asked for on the terminal.
                context.load_cert_chain(Path(self.client_certificate).expanduser(), key, password=lambda: "")
            except (OSError, ssl.SSLError) as error:
                raise _unusable("api.client_certificate", self.client_certificate, expected, error) from None
        return context


def network_of(api: Api) -> Network:
    """The place's way to its servers. Raises ConfigError for what cannot be used: nothing was sent by then."""
    network = Network(
        allowed_hosts=tuple(api.allowed_hosts),
        proxy=api.proxy,
        proxy_password_variable=api.proxy_password_variable,
        use_environment_proxy=api.use_environment_proxy,
        ca_file=api.ca_file,
        client_certificate=api.client_certificate,
        client_key=api.client_key,
    )
    if api.proxy_password_variable is not None and not urlsplit(api.proxy or "").username:
        raise ConfigError(
            "a proxy's password is named, and no user",
            where="api.proxy",
            expected="http://USER@HOST:PORT",
            next_step="write the user into api.proxy, or leave api.proxy_password_variable away",
        )
    if network.ca_file or network.client_certificate:
        network.tls()
    if network.proxy:
        network.proxy_for("https://any")
    return network


def tls_problem(error: BaseException) -> tuple[str, str] | None:
    """What is wrong with the certificates, and which setting helps; None if it is something else that may pass."""
    for cause in _causes(error):
        # aiohttp's own errors are of this type too, and say nothing: what they were made of comes next.
        said = getattr(cause, "verify_message", None)
        if said:
            if "match" in said.lower():
                return f"the certificate is of another host ({said})", "name the host as its certificate does"
            return f"the certificate is not trusted ({said})", "--set api.ca_file=CA.pem, or SSL_CERT_FILE=CA.pem"
        if isinstance(cause, ssl.SSLError):
            reason = getattr(cause, "reason", None) or ""
            if any(word in reason for word in ("WRONG_VERSION", "HTTP_REQUEST", "RECORD_LAYER", "UNKNOWN_PROTOCOL")):
                return "the server speaks no TLS at this port", "correct the port, or write http://"
            if any(word in reason for word in ("CERTIFICATE", "HANDSHAKE", "UNKNOWN_CA")):
                return (
                    f"the server refuses the connection ({reason})",
                    "does it want a client certificate? --set api.client_certificate=FILE --set api.client_key=FILE",
                )
    return None


def unused_proxy(network: Network) -> str | None:
    """A proxy of the shell that is not used, as something to say where no connection can be made."""
    names = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")
    found = next((name for name in names if variables.is_set(name)), None)
    return None if found is None or network.use_environment_proxy or network.proxy else found


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what it was made of; at most ten, since they may go in circles."""
    found: BaseException | None = error
    for _ in range(10):
        if found is None:
            return
        yield found
        inner = (getattr(found, name, None) for name in ("certificate_error", "os_error", "reason", "__cause__"))
        found = next((one for one in inner if isinstance(one, BaseException) and one is not found), found.__context__)


def _with_password(proxy: str, password: str | None) -> str:
    parts = urlsplit(proxy)
    if not parts.username:
        return proxy
    user = parts.username + (f":{quote(password, safe='')}" if password else "")
    return urlunsplit(parts._replace(netloc=f"{user}@{parts.netloc.rpartition('@')[2]}"))


def _unusable(setting: str, file: str, expected: str, error: OSError) -> ConfigError:
    said = getattr(error, "reason", None) or error.strerror or type(error).__name__
    return ConfigError(
        f"the file of {setting} cannot be used",
        where=file,
        expected=expected,
        found=said,
        next_step=f"correct {setting}; every node has to have the file",
    )
