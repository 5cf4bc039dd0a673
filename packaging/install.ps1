# Installs the program aweigh from a release: powershell -ExecutionPolicy Bypass -File install.ps1 [-Folder FOLDER]
#
# AWEIGH_RELEASE is the address of the release's files; the release's own copy of this script has it filled in.
param([string]$Folder = (Join-Path $env:LOCALAPPDATA "aweigh\bin"))
$ErrorActionPreference = "Stop"
# Drawing its progress makes Windows PowerShell's downloads many times slower.
$ProgressPreference = "SilentlyContinue"
$Folder = $ExecutionContext.SessionState.Path.GetUnresolvedProviderPathFromPSPath($Folder)

$release = if ($env:AWEIGH_RELEASE) { $env:AWEIGH_RELEASE } else { "@RELEASE@" }
if ($release.StartsWith("@")) {
    throw "expected the address of a release in AWEIGH_RELEASE, as in https://host/owner/aweigh/releases/download/v1"
}
$archive = "aweigh-x86_64-pc-windows-msvc.zip"
$work = Join-Path ([System.IO.Path]::GetTempPath()) ([System.IO.Path]::GetRandomFileName())
New-Item -ItemType Directory -Path $work | Out-Null
try {
    foreach ($file in $archive, "$archive.sha256") {
        Invoke-WebRequest -UseBasicParsing -Uri "$release/$file" -OutFile (Join-Path $work $file)
    }
    $expected = (Get-Content (Join-Path $work "$archive.sha256")).Split(" ")[0]
    $found = (Get-FileHash -Algorithm SHA256 (Join-Path $work $archive)).Hash.ToLower()
    if ($expected -ne $found) { throw "the archive's SHA-256 is $found, not ${expected}: it is damaged; try again" }
    Expand-Archive -Path (Join-Path $work $archive) -DestinationPath $work
    New-Item -ItemType Directory -Force -Path $Folder | Out-Null
    # The program and, for DX12, dxcompiler.dll.
    Copy-Item -Force -Path (Join-Path $work "aweigh-x86_64-pc-windows-msvc\*.exe") -Destination $Folder
    Copy-Item -Force -Path (Join-Path $work "aweigh-x86_64-pc-windows-msvc\*.dll") -Destination $Folder
} finally {
    Remove-Item -Recurse -Force $work
}
& (Join-Path $Folder "aweigh.exe") --version
# As it is written in the registry: reading it another way would replace variables in it by their values.
$key = [Microsoft.Win32.Registry]::CurrentUser.OpenSubKey("Environment", $true)
$path = $key.GetValue("Path", "", "DoNotExpandEnvironmentNames")
$parts = @($path -split ";" | Where-Object { $_ })
if ($parts -notcontains $Folder) {
    $key.SetValue("Path", (($parts + $Folder) -join ";"), "ExpandString")
    # Tells open programs of the change.
    [Environment]::SetEnvironmentVariable("AWEIGH_INSTALLED", $null, "User")
    "$Folder is in your PATH from the next terminal on"
}
