{
  description = "Reach a TCP service on a machine that can only make outgoing HTTPS connections";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs =
    { self, nixpkgs }:
    let
      systems = [
        "x86_64-linux"
        "aarch64-linux"
        "x86_64-darwin"
        "aarch64-darwin"
      ];
      forAllSystems = make: nixpkgs.lib.genAttrs systems (system: make nixpkgs.legacyPackages.${system});
      agentNeeds = ps: [
        ps.aiohappyeyeballs
        ps.aiohttp
        ps.platformdirs
        ps.python-socks
        ps.structlog
        ps.truststore
        ps.typer
        ps.websockets
      ];
      relayNeeds = ps: [
        ps.aiosqlite
        ps.alembic
        ps.greenlet
        ps.pydantic
        ps.sqlalchemy
      ];
    in
    {
      packages = forAllSystems (pkgs: {
        default = pkgs.python3.pkgs.buildPythonApplication {
          pname = "kdispatch";
          version = (builtins.fromTOML (builtins.readFile ./pyproject.toml)).project.version;
          pyproject = true;
          src = self;
          build-system = [ pkgs.python3.pkgs.hatchling ];
          # Agent and relay in one, as most who use Nix will want to try both.
          dependencies = agentNeeds pkgs.python3.pkgs ++ relayNeeds pkgs.python3.pkgs;
          pythonImportsCheck = [
            "kdispatch"
            "kdispatch_relay"
            "kdispatch_protocol"
          ];
          meta = {
            description = "Reach a TCP service on a machine that can only make outgoing HTTPS connections";
            license = pkgs.lib.licenses.mit;
            mainProgram = "kdispatch";
          };
        };
      });

      # What `make` needs to build its own environment; the tests' parts from outside are here as well.
      devShells = forAllSystems (pkgs: {
        default = pkgs.mkShell {
          packages = [
            pkgs.python3
            pkgs.gnumake
            pkgs.caddy
            pkgs.curl
            pkgs.netcat-openbsd
            pkgs.openssh
          ];
        };
      });
    };
}
