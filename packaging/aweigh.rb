# A Homebrew formula, for a tap: packaging/fill writes the version, the address and the checksums.
class Aweigh < Formula
  desc "Aligns small language models away from flagged answers, on any GPU"
  homepage "https://arxiv.org/abs/2403.03419"
  version "@VERSION@"
  license any_of: ["MIT", "Apache-2.0"]

  on_macos do
    on_arm do
      url "@RELEASE@/aweigh-aarch64-apple-darwin.tar.gz"
      sha256 "@aweigh-aarch64-apple-darwin.tar.gz@"
    end
    on_intel do
      url "@RELEASE@/aweigh-x86_64-apple-darwin.tar.gz"
      sha256 "@aweigh-x86_64-apple-darwin.tar.gz@"
    end
  end
  on_linux do
    on_arm do
      url "@RELEASE@/aweigh-aarch64-unknown-linux-gnu.tar.gz"
      sha256 "@aweigh-aarch64-unknown-linux-gnu.tar.gz@"
    end
    on_intel do
      url "@RELEASE@/aweigh-x86_64-unknown-linux-gnu.tar.gz"
      sha256 "@aweigh-x86_64-unknown-linux-gnu.tar.gz@"
    end
  end

  def install
    bin.install "aweigh"
    man1.install Dir["man/*.1"]
    bash_completion.install "completions/aweigh.bash" => "aweigh"
    zsh_completion.install "completions/_aweigh"
    fish_completion.install "completions/aweigh.fish"
  end

  test do
    assert_match version.to_s, shell_output("#{bin}/aweigh --version")
  end
end
